"""The machine that runs a grid: clusters, CTAs and warps under a seeded random scheduler.

Time is counted in instructions. A random warp runs for a random number of them; asynchronous work
ends after a random delay; when no warp can run, time skips to the next such end. Nothing in flight
and no warp that can run: a deadlock.
"""

import heapq
import random
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field
from itertools import product
from typing import Any

import numpy as np

from nvfp4.backends.cutedsl.emulator import ptx, special
from nvfp4.backends.cutedsl.emulator.hazards import Deadlock, Event, Hazard, Kind
from nvfp4.backends.cutedsl.emulator.lanes import LANES, Loading, flags, spread
from nvfp4.backends.cutedsl.emulator.memory import (
    RANK_SHIFT,
    Bytes,
    GlobalMemory,
    SharedMemory,
    shared_layout,
)
from nvfp4.backends.cutedsl.emulator.program import BLOCKED, DIVERGED, YIELD, Program
from nvfp4.backends.cutedsl.emulator.shadow import Events
from nvfp4.backends.cutedsl.emulator.sync import ClusterBarrier, Mbarrier, NamedBarrier
from nvfp4.backends.cutedsl.emulator.tensor_core import TensorPipe
from nvfp4.backends.cutedsl.emulator.tensor_memory import TensorMemory

Dim = tuple[int, int, int]

_FAR = 1 << 60


@dataclass(frozen=True)
class Options:
    """How a run is scheduled and what it checks.

    `seed`: of every random choice. `delay`: the longest time that asynchronous work takes, in
    instructions. `outputs`: names of tensors whose content counts as uninitialised and that must be
    written whole. `max_steps`: instructions before a run counts as a livelock. `check`: hazards.
    `tmem_load_waits`: whether a register that tcgen05.ld writes has no value until the warp has
    executed tcgen05.wait::ld, as PTX ISA has it; False for kernels that leave the wait out, as
    those of CUTLASS do, and rely on hardware's waiting for registers. `quantum`: the most
    instructions that a warp runs at a time. `multiprocessors`: as many CTAs run at once.
    """

    seed: int = 0
    delay: int = 0
    outputs: frozenset[str] = frozenset()
    max_steps: int = 200_000_000
    check: bool = True
    tmem_load_waits: bool = True
    quantum: int = 64
    multiprocessors: int = 148


@dataclass
class Report:
    """What a run did."""

    launches: int = 0
    instructions: int = 0
    counts: Counter[str] = field(default_factory=Counter)


@dataclass(frozen=True)
class Launch:
    program: Program
    module: ptx.Module
    grid: Dim
    block: Dim
    cluster: Dim
    dynamic_shared: int
    parameters: bytes


class Warp:
    """32 threads. While they run together `pc` is theirs; else each fragment has a pc and lanes."""

    __slots__ = (
        "registers", "program", "steps", "pc", "mask", "full", "live", "limit", "fragments", "cta",
        "cluster", "machine", "index", "parked", "seen", "fenced", "released", "span", "init_span",
        "inits", "batch", "pipe_seen", "bulk", "bulk_groups", "loading", "acquired", "state",
    )  # fmt: skip

    def __init__(self, cta: "Cta", index: int, live: int, registers: list[Any]) -> None:
        self.cta, self.cluster, self.machine = cta, cta.cluster, cta.cluster.machine
        self.index = index
        self.program = self.machine.launch.program
        self.steps = self.program.steps
        self.registers = registers
        self.pc = 0
        self.mask = self.live = live
        self.full = True
        self.limit = _FAR
        self.fragments: list[list[int]] = []  # others: [pc, lanes, blocked]
        self.parked = False
        # What it has observed, which generic writes of it lie behind a proxy fence, what its fences
        # have released, and the event of what it writes and reads now.
        self.seen = self.fenced = self.released = 0
        self.span = self.init_span = self.inits = 0
        # The event of the tensor core work it issues now; what that work and all before it know.
        self.batch = self.pipe_seen = 0
        self.bulk: list[Any] = []  # bulk stores not yet in a group
        self.bulk_groups: list[list[Any]] = []  # those of each group, oldest first
        self.loading: list[tuple[int, Loading]] = []  # registers of tcgen05.ld, until the wait
        self.acquired = 0  # the CTAs (bits) whose releases to the whole GPU came before its acquire
        self.state: dict[Any, Any] = {}

    @property
    def where(self) -> str:
        return f"CTA {self.cta.index} warp {self.index}"

    def run(self, budget: int) -> int:
        """Runs up to `budget` instructions; how many it ran."""
        steps, pc, left = self.steps, self.pc, budget
        try:
            while left > 0:
                left -= 1
                outcome = steps[pc](self)
                if outcome is None:
                    pc += 1
                elif outcome >= 0:
                    back = outcome <= pc
                    pc = outcome
                    if back and self.fragments:
                        self._select(pc)
                        pc = self.pc
                elif outcome == YIELD:
                    pc += 1
                    break
                elif outcome == BLOCKED:
                    if not self._block(pc):
                        break
                    pc = self.pc
                elif outcome == DIVERGED:
                    pc = self.pc
                elif not self._end():  # outcome == ENDED
                    break
                else:
                    pc = self.pc
                if pc >= self.limit:
                    self._select(pc)
                    pc = self.pc
        except Hazard as hazard:
            line = self.program.lines[pc]
            raise hazard.at(line.line, line.text, self.where) from None
        except (TypeError, AttributeError) as error:
            line = self.program.lines[pc]
            if (missing := self._without_value(line)) is None:
                raise
            raise missing.at(line.line, line.text, self.where) from error
        self.pc = pc
        return budget - left

    def _without_value(self, line: ptx.Instruction) -> Hazard | None:
        """What is wrong with an instruction that could not use its registers."""
        for slot in self.program.named_by(line):
            if self.registers[slot].__class__ is Loading:
                return Hazard(Kind.EARLY_READ, str(self.registers[slot]))
        if any(self.registers[slot] is None for slot in self.program.read_by(line)):
            return Hazard(Kind.UNINITIALISED, "a register is read that was never written")
        return None

    def merge(self, slot: int, value: Any) -> None:
        """Writes a register in the lanes that run; the others keep theirs."""
        old = self.registers[slot]
        bits = self.program.bits[slot]
        if bits == 1:
            old = old or 0
            value = old & ~self.mask | value & self.mask
        elif old is not None and not (value.__class__ is int is old.__class__ and value == old):
            value = np.where(flags(self.mask), spread(value, bits), spread(old, bits))
        self.registers[slot] = value

    def diverge(self, target: int, lanes: int, fall: int) -> int:
        """Some lanes go to `target`, the others to `fall`; the lower pc runs first."""
        self.fragments.append([target, lanes, 0])
        self.mask &= ~lanes
        self._select(fall)
        return DIVERGED

    def _select(self, pc: int) -> bool:
        """Takes up the lowest fragment that is not blocked, with all lanes that are there."""
        merged: dict[int, list[int]] = {}
        if self.mask:
            self.fragments.append([pc, self.mask, 0])
        for at, lanes, blocked in self.fragments:
            if at in merged:
                merged[at][1] |= lanes
                merged[at][2] = 0
            else:
                merged[at] = [at, lanes, blocked]
        order = sorted(merged.values())
        for position, (at, lanes, blocked) in enumerate(order):
            if not blocked:
                self.pc, self.mask = at, lanes
                self.full = lanes == self.live
                self.fragments = order[:position] + order[position + 1 :]
                self.limit = order[position + 1][0] if position + 1 < len(order) else _FAR
                return True
        self.pc, self.mask, self.limit = order[0][0], order[0][1], _FAR
        self.full = self.mask == self.live
        self.fragments = order[1:]
        return False

    def _block(self, pc: int) -> bool:
        """The running lanes wait. Whether others can run; if not, the warp is parked."""
        if self.fragments:
            self.fragments.append([pc, self.mask, 1])
            self.mask = 0
            if self._select(pc):
                return True
        self.parked = True
        return False

    def wake(self) -> None:
        """What blocked lanes of this warp wait for may have happened."""
        for fragment in self.fragments:
            fragment[2] = 0
        if self.parked:
            self.parked = False
            self.machine.runnable.append(self)

    def _end(self) -> bool:
        self.live &= ~self.mask
        self.mask = 0
        if not self.live:
            self.cta.warp_ended(self)
            return False
        self._select(self.pc)
        return True

    def converge(self) -> int | None:
        """For instructions of whole warps: BLOCKED until all live lanes are here."""
        if self.full:
            return None
        if not self.fragments or all(blocked for _, _, blocked in self.fragments):
            raise Hazard(
                Kind.PARTIAL_WARP, f"the whole warp must run this, not lanes {self.mask:#010x}"
            )
        return BLOCKED

    # What others may wait for

    def event(self, instruction: ptx.Instruction) -> int:
        """The event that this warp's ordinary reads and writes belong to until it releases."""
        if not self.span:
            event = Event("ordinary accesses from here on", instruction.line, self.where)
            self.span = self.cluster.events.new(event, generic=True)
            self.seen |= 1 << self.span
        return self.span

    def release(self) -> tuple[int, int]:
        """(observed, fenced) as they are handed to whoever waits for what the warp does now."""
        self.span = self.init_span = 0
        return self.seen, self.fenced

    def acquire(self, seen: int, fenced: int) -> None:
        self.seen |= seen
        self.fenced |= fenced

    def release_to_gpu(self) -> None:
        """Its CTA's global writes until now are seen by whoever acquires from now on."""
        self.machine.released |= 1 << self.cta.number

    def acquire_from_gpu(self) -> None:
        self.acquired |= self.machine.released

    def wait_for_grids(self, line: int) -> None:
        """griddepcontrol.wait: this warp, and who waits for it, may access global memory."""
        cluster = self.cluster
        if not self.seen & cluster.grid_waits:
            event = cluster.events.new(Event("griddepcontrol.wait", line, self.where))
            self.seen |= 1 << event
            cluster.grid_waits |= 1 << event

    def access_global(self) -> None:
        """Before an access to global memory: the grids before this one have ended, if it waits."""
        if self.machine.waits_for_grids and not self.seen & self.cluster.grid_waits:
            raise Hazard(
                Kind.GRID_DEPENDENCY, "global memory is accessed without waiting for"
                " griddepcontrol.wait, which this kernel has"
            )  # fmt: skip


class Cta:
    def __init__(self, cluster: "Cluster", rank: int, index: Dim) -> None:
        machine = cluster.machine
        launch = machine.launch
        self.cluster, self.rank, self.index = cluster, rank, index
        self.number = index[0] + launch.grid[0] * (index[1] + launch.grid[1] * index[2])
        self.shared = SharedMemory(machine.shared_size, cluster.events, f"CTA {index}")
        self.mbarriers: dict[int, Mbarrier] = {}
        self.named: dict[int, NamedBarrier] = {}
        self.tensor = TensorMemory(self)
        self.pipe = TensorPipe(machine)
        threads = launch.block[0] * launch.block[1] * launch.block[2]
        self.threads = threads
        self.exited = False
        self.warps = []
        for index_ in range(-(-threads // LANES)):
            lanes = min(LANES, threads - index_ * LANES)
            registers = machine.registers(self, index_)
            self.warps.append(Warp(self, index_, (1 << lanes) - 1, registers))
        self.live_threads = threads

    def warp_ended(self, warp: Warp) -> None:
        if warp.bulk or warp.bulk_groups:
            raise Hazard(
                Kind.UNFINISHED, "a warp exits with bulk stores that may still read shared memory"
            )
        self.cluster.barrier.check()
        if all(not w.live for w in self.warps):
            self.exited = True
            self.tensor.cta_exits()
            self.cluster.cta_ended()


class Cluster:
    def __init__(self, machine: "Machine", origin: Dim) -> None:
        self.machine = machine
        self.events = Events()
        self.cta_group = 0  # of its tcgen05 instructions; 0: none yet
        self.grid_waits = 0  # the events of its griddepcontrol.wait
        self.barrier = ClusterBarrier(self)
        shape = machine.launch.cluster
        self.ctas: list[Cta] = []
        for rank, (z, y, x) in enumerate(product(*(range(n) for n in reversed(shape)))):
            index = (origin[0] + x, origin[1] + y, origin[2] + z)
            self.ctas.append(Cta(self, rank, index))

    def cta_ended(self) -> None:
        if all(cta.exited for cta in self.ctas):
            self.machine.cluster_ended(self)


class Machine:
    """Runs one launch."""

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
        self.layout, self.shared_size = shared_layout(launch.module.shared, launch.dynamic_shared)
        program = launch.program
        self.released = 0  # the CTAs (bits) that have released to the whole GPU
        self.waits_for_grids = options.check and program.uses("griddepcontrol.wait")
        self.tmem_load_waits = options.check and options.tmem_load_waits
        self._template: list[Any] = [None] * len(program.bits)
        for slot, value in program.constants.items():
            self._template[slot] = value
        shape = [range(0, n, c) for n, c in zip(launch.grid, launch.cluster, strict=True)]
        self._waiting = [(x, y, z) for z, y, x in product(shape[2], shape[1], shape[0])][::-1]
        self._check_launch()

    def _check_launch(self) -> None:
        launch, kernel = self.launch, self.launch.program.kernel
        if any(n % c for n, c in zip(launch.grid, launch.cluster, strict=True)):
            raise ValueError(f"grid {launch.grid} is no multiple of the cluster {launch.cluster}")
        if kernel.required_threads and kernel.required_threads != launch.block:
            raise ValueError(f"block {launch.block}, .reqntid {kernel.required_threads}")
        if kernel.required_cluster and kernel.required_cluster != launch.cluster:
            raise ValueError(f"cluster {launch.cluster}, required {kernel.required_cluster}")

    def after(self, delay: int, what: Callable[[], None]) -> None:
        self.at(self.time + delay, what)

    def at(self, time: int, what: Callable[[], None]) -> None:
        self.event_number += 1
        heapq.heappush(self.events, (time, self.event_number, what))

    def delay(self) -> int:
        """A random duration of asynchronous work."""
        longest = self.options.delay
        return self.random.randint(0, longest) if longest else 0

    def registers(self, cta: Cta, warp: int) -> list[Any]:
        """A warp's registers at its start: constants, special registers, addresses of variables."""
        registers = self._template.copy()
        for slot, symbol in self.launch.program.symbols.items():
            value = self._symbol(cta, warp, symbol.name) if symbol.name else 0
            registers[slot] = value + symbol.offset if symbol.offset else value
        return registers

    def _symbol(self, cta: Cta, warp: int, name: str) -> Any:
        if name in self.layout:
            return cta.rank << RANK_SHIFT | self.layout[name]
        offsets = self.launch.program.kernel.parameter_offsets
        if name in offsets:
            return offsets[name]
        return special.value(name, self, cta, warp)

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
        """Takes a warp off the list of those that can run; it may have moved meanwhile."""
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
        """Each live warp's place."""
        lines = []
        for cluster in self.clusters:
            for warp in (warp for cta in cluster.ctas for warp in cta.warps if warp.live):
                places = [(warp.pc, warp.mask), *((pc, lanes) for pc, lanes, _ in warp.fragments)]
                for pc, lanes in places:
                    instruction = warp.program.lines[pc]
                    some = "" if lanes == warp.live else f" lanes {lanes:#010x}"
                    lines.append(f"{warp.where}{some}: line {instruction.line}: {instruction.text}")
        return lines
