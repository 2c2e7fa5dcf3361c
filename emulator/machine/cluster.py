"""CTAs and clusters, with the state that their warps share."""

from itertools import product
from typing import Any

from nvfp4.emulator.engine.knowledge import Surroundings
from nvfp4.emulator.hazards import Event, Hazard, Kind
from nvfp4.emulator.lanes import LANES
from nvfp4.emulator.machine.barriers import ClusterBarrier, NamedBarrier
from nvfp4.emulator.machine.mbarrier import Mbarrier
from nvfp4.emulator.machine.tensor_pipe import TensorPipe
from nvfp4.emulator.machine.warp import Warp
from nvfp4.emulator.memory.addresses import RANK_SHIFT
from nvfp4.emulator.memory.shadow import Events
from nvfp4.emulator.memory.shared_memory import SharedMemory
from nvfp4.emulator.memory.tensor_memory import TensorMemory

Dim = tuple[int, int, int]


class Cta:
    """A CTA: its warps, shared memory, barriers, tensor memory and tensor core."""

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
        self.started = cluster.events.new_executed(Event("start", 0, f"CTA {index}"))
        """The event that this CTA runs, which its own warps know and pass on to others."""
        self.incoming = 0
        """The events of other CTAs here: their accesses to its shared memory, their arrivals, and
        those of their commits.
        """
        around = Surroundings(
            machine.options.check,
            self.shared.bytes.data,
            self.shared.shadow.writer,
            self.shared.shadow.readers,
            machine.shared_size,
            rank << RANK_SHIFT,
            machine.memory.table,
            self.number,
            machine.parameters.data,
        )
        self.warps = []
        for index_ in range(-(-threads // LANES)):
            lanes = min(LANES, threads - index_ * LANES)
            registers = machine.registers(self, index_)
            warp = Warp(self, index_, (1 << lanes) - 1, registers, around)
            warp.seen = 1 << self.started
            self.warps.append(warp)
        self.live_threads = threads

    def warp_ended(self, warp: Warp) -> None:
        if warp.bulk or warp.bulk_groups:
            raise Hazard(
                Kind.UNFINISHED, "a warp exits with bulk stores that may still read shared memory"
            )
        self.cluster.barrier.check()
        if all(not w.live for w in self.warps):
            self._check_incoming()
            self.exited = True
            self.tensor.cta_exits()
            self.cluster.cta_ended()

    def _check_incoming(self) -> None:
        """Refuse to end before what other CTAs do in its shared memory has been waited for.

        It may still be on its way, even if it has come under this schedule.
        """
        missing = self.incoming
        for warp in self.warps:
            missing &= ~warp.seen
        if missing and self.cluster.machine.options.check:
            event = self.cluster.events[missing.bit_length() - 1]
            raise Hazard(Kind.EXITED, f"CTA {self.index} exits without having waited for {event}")


class Cluster:
    """CTAs that run together; `events` numbers what they may wait for (memory/shadow.py)."""

    def __init__(self, machine: Any, origin: Dim) -> None:
        self.machine = machine
        self.events = Events()
        self.cta_group = 0  # of its tcgen05 instructions; 0 before the first
        self.grid_waits = 0  # the events of its griddepcontrol.wait
        self.acquires: list[tuple[int, int]] = []
        """The event of each acquire at .gpu scope, and the CTAs (bits) whose releases it was of."""
        self.barrier = ClusterBarrier(self)
        shape = machine.launch.cluster
        self.ctas: list[Cta] = []
        for rank, (z, y, x) in enumerate(product(*(range(n) for n in reversed(shape)))):
            index = (origin[0] + x, origin[1] + y, origin[2] + z)
            self.ctas.append(Cta(self, rank, index))

    def cta_ended(self) -> None:
        if all(cta.exited for cta in self.ctas):
            self.machine.cluster_ended(self)
