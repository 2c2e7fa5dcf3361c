"""The machine that runs a grid's clusters under a seeded random scheduler.

Time is counted in instructions. A random warp runs for a random number of them, and asynchronous
work ends after a random delay. When no warp can run, time skips to the next end of such work. When
nothing is in flight either, that is a deadlock.
"""

import heapq
import random
from collections.abc import Callable
from dataclasses import dataclass
from itertools import product
from math import prod
from typing import Any

import numpy as np

from nvfp4.emulator.engine.registers import Registers
from nvfp4.emulator.hazards import Deadlock, Hazard, Kind
from nvfp4.emulator.machine import special_registers
from nvfp4.emulator.machine.cluster import Cluster, Cta, Dim
from nvfp4.emulator.machine.options import Options, Report
from nvfp4.emulator.machine.program import Program
from nvfp4.emulator.machine.warp import Warp
from nvfp4.emulator.memory.addresses import DYNAMIC_SHARED_BASE, RANK_SHIFT
from nvfp4.emulator.memory.bytes import Bytes
from nvfp4.emulator.memory.global_memory import GlobalMemory
from nvfp4.emulator.memory.shared_memory import shared_layout

MOST_THREADS = 1024
PORTABLE_CLUSTER, LARGE_CLUSTER = 8, 16
SHARED_BYTES = 232448
REGISTERS = 65536


@dataclass(frozen=True)
class Launch:
    """A launch of a program, whose grid and cluster are in CTAs and whose block is in threads."""

    program: Program
    grid: Dim
    block: Dim
    cluster: Dim
    dynamic_shared: int
    """The bytes of dynamic shared memory."""
    parameters: bytes
    """The kernel's parameters, laid out as in its PTX."""
    large_clusters: bool = False
    """Whether clusters of more than 8 CTAs are allowed (a function attribute of CUDA)."""


class Machine:
    """The clusters of one launch, their time, and the work in flight."""

    def __init__(self, launch: Launch, memory: GlobalMemory, options: Options, report: Report):
        self.launch, self.memory, self.options, self.report = launch, memory, options, report
        self.random = random.Random(options.seed)
        self.counts = report.counts
        self.time = 0
        self.events: list[tuple[int, int, Callable[[], None]]] = []
        self.event_number = 0
        self.runnable: list[Warp] = []
        self.clusters: list[Cluster] = []
        self.parameters = Bytes(np.frombuffer(bytearray(launch.parameters), np.uint8), False)
        self.layout, self.shared_size = shared_layout(launch.program.shared, launch.dynamic_shared)
        program = launch.program
        self.parameter_offsets = program.kernel.parameter_offsets
        self.released = 0  # the CTAs (bits) that have released to the whole GPU
        self.waits_for_grids = options.check and program.uses("griddepcontrol.wait")
        self.tmem_load_waits = options.check and options.tmem_load_waits
        self.tcgen05_fences = options.check and options.tcgen05_fences
        shape = [range(0, n, c) for n, c in zip(launch.grid, launch.cluster, strict=True)]
        self._waiting = [(x, y, z) for z, y, x in product(shape[2], shape[1], shape[0])][::-1]
        self._check_launch()

    def _check_launch(self) -> None:
        self._check_limits()
        launch, kernel = self.launch, self.launch.program.kernel
        if any(n % c for n, c in zip(launch.grid, launch.cluster, strict=True)):
            raise ValueError(f"grid {launch.grid} is no multiple of the cluster {launch.cluster}")
        if kernel.required_threads and kernel.required_threads != launch.block:
            raise ValueError(f"block {launch.block}, .reqntid {kernel.required_threads}")
        if kernel.required_cluster and kernel.required_cluster != launch.cluster:
            raise ValueError(f"cluster {launch.cluster}, required {kernel.required_cluster}")

    def _check_limits(self) -> None:
        """Refuse what a GPU would not launch."""
        launch = self.launch
        threads, cluster = prod(launch.block), prod(launch.cluster)
        shared = self.shared_size - DYNAMIC_SHARED_BASE
        if threads > MOST_THREADS:
            raise Hazard(Kind.LAUNCH, f"{threads} threads in a CTA, of which {MOST_THREADS} fit")
        most = LARGE_CLUSTER if launch.large_clusters else PORTABLE_CLUSTER
        if cluster > most:
            raise Hazard(Kind.LAUNCH, f"clusters of {cluster} CTAs; {most} are allowed")
        if shared > SHARED_BYTES:
            raise Hazard(Kind.LAUNCH, f"{shared} bytes of shared memory; a CTA has {SHARED_BYTES}")
        registers = launch.program.kernel.most_registers
        if registers is not None and registers * -(-threads // 32) * 32 > REGISTERS:
            raise Hazard(
                Kind.LAUNCH, f"{registers} registers x {threads} threads; an SM has {REGISTERS}"
            )

    def after(self, delay: int, what: Callable[[], None]) -> None:
        self.at(self.time + delay, what)

    def at(self, time: int, what: Callable[[], None]) -> None:
        self.event_number += 1
        heapq.heappush(self.events, (time, self.event_number, what))

    def delay(self) -> int:
        """Draw the duration of asynchronous work."""
        longest = self.options.delay
        return self.random.randint(0, longest) if longest else 0

    def registers(self, cta: Cta, warp: int) -> Registers:
        """Give a warp's registers at its start: constants, special registers and addresses."""
        registers = Registers(self.launch.program.layout)
        for slot, symbol in self.launch.program.symbols.items():
            value = self._symbol(cta, warp, symbol.name) if symbol.name else 0
            registers[slot] = value + symbol.offset if symbol.offset else value
        return registers

    def _symbol(self, cta: Cta, warp: int, name: str) -> Any:
        if name in self.layout:
            return cta.rank << RANK_SHIFT | self.layout[name]
        if name in self.parameter_offsets:
            return self.parameter_offsets[name]
        return special_registers.value(name, self, cta, warp)

    def run(self) -> None:
        size = self.launch.cluster[0] * self.launch.cluster[1] * self.launch.cluster[2]
        for _ in range(max(1, self.options.multiprocessors // size)):
            self._start_cluster()
        runnable, events, choose = self.runnable, self.events, self.random.random
        quantum, start = self.options.quantum, self.time
        while True:
            while events and events[0][0] <= self.time:
                heapq.heappop(events)[2]()
            if runnable:
                position = int(choose() * len(runnable))
                warp = runnable[position]
                ran = warp.run(1 + int(choose() * quantum))
                self.time += ran
                if warp.parked or not warp.live:
                    self._drop(warp, position)
                if self.time - start > self.options.max_steps:
                    raise Deadlock(f"still running after {self.time} instructions", self._waits())
            elif events:
                self.time = events[0][0]
            elif self.clusters:
                raise Deadlock("no warp can run and nothing is in flight", self._waits())
            else:
                break
        self.report.instructions += self.time - start

    def _drop(self, warp: Warp, position: int) -> None:
        """Take a warp off the list of runnable ones, in which it may have moved meanwhile."""
        runnable = self.runnable
        if position >= len(runnable) or runnable[position] is not warp:
            position = runnable.index(warp)
        runnable[position] = runnable[-1]
        runnable.pop()

    def _start_cluster(self) -> None:
        if self._waiting:
            cluster = Cluster(self, self._waiting.pop())
            self.clusters.append(cluster)
            for cta in cluster.ctas:
                self.runnable.extend(cta.warps)

    def cluster_ended(self, cluster: Cluster) -> None:
        self.clusters.remove(cluster)
        self._start_cluster()

    def _waits(self) -> list[str]:
        """Describe where each live warp stands."""
        lines = []
        for cluster in self.clusters:
            for warp in (warp for cta in cluster.ctas for warp in cta.warps if warp.live):
                places = [(warp.pc, warp.mask), *((pc, lanes) for pc, lanes, _ in warp.fragments)]
                for pc, lanes in places:
                    instruction = warp.program.kernel.instructions[pc]
                    some = "" if lanes == warp.live else f" lanes {lanes:#010x}"
                    lines.append(f"{warp.where}{some}: line {instruction.line}: {instruction.text}")
        return lines
