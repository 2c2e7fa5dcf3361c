"""Barriers (PTX ISA: Parallel Synchronization and Communication Instructions).

mbarrier, bar.sync and its kin, barrier.cluster. Each hands what the arriving have observed to those
that wait; see shadow.py.
"""

from collections.abc import Mapping
from typing import Any

from nvfp4.backends.cutedsl.emulator import ptx
from nvfp4.backends.cutedsl.emulator.accesses import cta_at
from nvfp4.backends.cutedsl.emulator.hazards import Event, Hazard, Kind
from nvfp4.backends.cutedsl.emulator.lanes import ALL, members, pick, uniform
from nvfp4.backends.cutedsl.emulator.program import (
    BLOCKED,
    YIELD,
    Decoder,
    Modifiers,
    Program,
    Step,
)
from nvfp4.backends.cutedsl.emulator.shadow import MBARRIER

_TX_LIMIT = (1 << 20) - 1
"""The range of an mbarrier's tx-count (PTX ISA: Contents of the mbarrier object)."""


class Mbarrier:
    """An mbarrier object: its phase completes when no arrival and no transaction is pending."""

    __slots__ = (
        "count", "pending", "tx", "phase", "seen", "fenced", "done", "waiting", "init", "where",
    )  # fmt: skip

    def __init__(self, count: int, init: int, where: str) -> None:
        self.count = self.pending = count
        self.tx = 0
        self.phase = 0
        self.seen = self.fenced = 0  # what this phase's arrivals had observed
        self.done = (0, 0)  # what the completed phases' had
        self.waiting: list[Any] = []
        self.init = init  # the event of its initialisation
        self.where = where

    def arrive(self, arrivals: int, tx: int, seen: int, fenced: int) -> None:
        """`tx` > 0 expects that many bytes; < 0: so many have come."""
        if arrivals > self.pending:
            raise Hazard(
                Kind.MBARRIER,
                f"{arrivals} arrivals at {self.where}, where {self.pending} of {self.count} are"
                " pending in this phase",
            )
        self.seen |= seen
        self.fenced |= fenced
        self.pending -= arrivals
        self.tx += tx
        if not -_TX_LIMIT <= self.tx <= _TX_LIMIT:
            raise Hazard(Kind.MBARRIER, f"tx-count {self.tx} at {self.where} is out of range")
        if self.pending:
            return
        if self.tx < 0:
            raise Hazard(
                Kind.MBARRIER,
                f"{-self.tx} bytes more than expected have come at {self.where} in this phase",
            )
        if self.tx == 0:
            self.pending = self.count
            self.phase += 1
            self.done = (self.done[0] | self.seen, self.done[1] | self.fenced)
            self.seen = self.fenced = 0
            waiting, self.waiting = self.waiting, []
            for warp in waiting:
                warp.wake()


def mbarrier_at(warp: Any, address: int) -> Mbarrier:
    """The mbarrier at a shared address, for a warp that must know that it is initialised."""
    cta, offset = cta_at(warp, address)
    barrier = cta.mbarriers.get(offset)
    if barrier is None:
        raise Hazard(Kind.MBARRIER, f"no mbarrier was initialised at {address:#x}")
    if not warp.seen >> barrier.init & 1:
        event = warp.cluster.events[barrier.init]
        raise Hazard(Kind.MBARRIER, f"{barrier.where} is used without waiting for its {event}")
    return barrier


class NamedBarrier:
    """One of a CTA's 16 hardware barriers."""

    def __init__(self, number: int) -> None:
        self.number = number
        self.threads = 0  # of the phase under way; 0: nobody has arrived
        self.arrived = 0
        self.seen = self.fenced = 0
        self.done: list[tuple[int, int]] = []  # of each phase, what its arrivals had observed
        self.waiting: list[Any] = []

    def arrive(self, warp: Any, threads: int) -> int:
        """Counts a warp in; the phase to wait for."""
        if threads % 32 or not threads:
            raise Hazard(Kind.BARRIER, f"barrier {self.number} for {threads} threads")
        if self.arrived and threads != self.threads:
            raise Hazard(
                Kind.BARRIER,
                f"barrier {self.number} for {threads} threads; others meet there as {self.threads}",
            )
        self.threads = threads
        seen, fenced = warp.release()
        self.seen |= seen
        self.fenced |= fenced
        self.arrived += 32  # a barrier counts whole warps
        phase = len(self.done)
        if self.arrived >= threads:
            self.arrived = 0
            self.done.append((self.seen, self.fenced))
            self.seen = self.fenced = 0
            waiting, self.waiting = self.waiting, []
            for waiter in waiting:
                waiter.wake()
        return phase


class ClusterBarrier:
    """barrier.cluster: all threads of the cluster that have not exited."""

    def __init__(self, cluster: Any) -> None:
        self._cluster = cluster
        self.arrived: dict[Any, int] = {}  # warp: its lanes that have arrived
        self.seen = self.fenced = 0
        self.done: list[tuple[int, int]] = []  # as in NamedBarrier
        self.waiting: list[Any] = []

    def arrive(self, warp: Any, seen: int, fenced: int) -> None:
        before = self.arrived.get(warp, 0)
        if before & warp.mask:
            raise Hazard(Kind.BARRIER, "barrier.cluster.arrive twice without a wait between")
        self.arrived[warp] = before | warp.mask
        self.seen |= seen
        self.fenced |= fenced
        self.check()

    def check(self) -> None:
        """Completes the phase if all that live have arrived."""
        for cta in self._cluster.ctas:
            for warp in cta.warps:
                if warp.live & ~self.arrived.get(warp, 0):
                    return
        if not self.arrived:
            return
        self.arrived = {}
        self.done.append((self.seen, self.fenced))
        self.seen = self.fenced = 0
        waiting, self.waiting = self.waiting, []
        for warp in waiting:
            warp.wake()


def _decode_mbarrier(instruction: ptx.Instruction, program: Program) -> Step:
    modifiers = Modifiers(instruction)
    operation = modifiers.need("init", "inval", "arrive", "test_wait", "try_wait", "expect_tx")
    return {
        "init": _init,
        "inval": _inval,
        "arrive": _arrive,
        "expect_tx": _arrive,
        "test_wait": _wait,
        "try_wait": _wait,
    }[operation](instruction, program, modifiers)


def _init(instruction: ptx.Instruction, program: Program, modifiers: Modifiers) -> Step:
    modifiers.take("shared", "shared::cta")
    modifiers.need("b64")
    modifiers.done()
    base, offset = program.address(instruction.operands[0])
    count = program.source(instruction.operands[1], 32)

    def step(warp: Any) -> None:
        address = _one_address(warp, base, offset)
        arrivals = pick(warp.registers[count], warp.mask)
        cta, at = cta_at(warp, address)
        if at % 8:
            raise Hazard(Kind.MISALIGNED, f"an mbarrier at {address:#x}")
        cta.shared.bound(at, at + 8)
        if at in cta.mbarriers:
            raise Hazard(Kind.MBARRIER, f"the mbarrier at {address:#x} is initialised twice")
        if not 1 <= arrivals <= _TX_LIMIT:
            raise Hazard(Kind.MBARRIER, f"an mbarrier for {arrivals} arrivals")
        if not warp.init_span:
            event = Event("mbarrier.init", instruction.line, warp.where)
            warp.init_span = warp.cluster.events.new(event)
            warp.seen |= 1 << warp.init_span
            warp.inits |= 1 << warp.init_span
        shadow = cta.shared.shadow
        if warp.machine.options.check:
            shadow.write(slice(at, at + 8), MBARRIER, warp.seen)
        cta.mbarriers[at] = Mbarrier(arrivals, warp.init_span, f"mbarrier {address:#x}")

    return step


def _inval(instruction: ptx.Instruction, program: Program, modifiers: Modifiers) -> Step:
    modifiers.take("shared", "shared::cta")
    modifiers.need("b64")
    modifiers.done()
    base, offset = program.address(instruction.operands[0])

    def step(warp: Any) -> None:
        address = _one_address(warp, base, offset)
        barrier = mbarrier_at(warp, address)
        if barrier.pending != barrier.count or barrier.tx:
            raise Hazard(Kind.MBARRIER, f"{barrier.where} is invalidated within a phase")
        cta, at = cta_at(warp, address)
        del cta.mbarriers[at]
        cta.shared.shadow.writer[at : at + 8] = 0

    return step


def _one_address(warp: Any, base: int, offset: int) -> int:
    address = uniform(warp.registers[base], warp.mask)
    if address is None:
        raise Hazard(Kind.MANY_LANES, "the lanes name different mbarriers")
    return address + offset


def _arrive(instruction: ptx.Instruction, program: Program, modifiers: Modifiers) -> Step:
    """mbarrier.arrive, .arrive.expect_tx, .expect_tx: each active lane counts."""
    counts = "arrive" in instruction.modifiers
    expects = bool(modifiers.take("expect_tx")) or not counts
    modifiers.take("noComplete")
    relaxed = modifiers.take("release", "relaxed") == "relaxed"
    modifiers.take("cta", "cluster")
    modifiers.take("shared", "shared::cta", "shared::cluster")
    modifiers.need("b64")
    modifiers.done()
    operands = list(instruction.operands)
    put = None
    if not isinstance(operands[0], ptx.Address):
        put = program.put(operands.pop(0), 64)
    base, offset = program.address(operands[0])
    value = program.source(operands[1], 32) if len(operands) > 1 else None

    def step(warp: Any) -> None:
        registers, mask = warp.registers, warp.mask
        amount = registers[value] if value is not None else 1
        address = registers[base]
        released = (warp.released, warp.fenced) if relaxed else warp.release()
        if address.__class__ is int and amount.__class__ is int:
            groups = [(address + offset, amount, mask.bit_count())]
        else:
            groups = [
                (pick(address, 1 << lane) + offset, pick(amount, 1 << lane), 1)
                for lane in members(mask).tolist()
            ]
        for at, each, lanes in groups:
            barrier = mbarrier_at(warp, at)
            arrivals = 0 if not counts else lanes if expects else lanes * each
            barrier.arrive(arrivals, lanes * each if expects else 0, *released)
        if put is not None:
            put(warp, 0)  # the state: nothing uses it, waits are by parity

    return step


def _wait(instruction: ptx.Instruction, program: Program, modifiers: Modifiers) -> Step:
    modifiers.need("parity")
    modifiers.take("acquire", "relaxed")
    modifiers.take("cta", "cluster")
    modifiers.take("shared", "shared::cta")
    modifiers.need("b64")
    modifiers.done()
    predicate, address, parity_operand, *_ = instruction.operands
    put = program.put(predicate, 1)
    base, offset = program.address(address)
    parity = program.source(parity_operand, 32)
    spins = _spins(program.kernel, program.index)

    def step(warp: Any) -> int | None:
        registers = warp.registers
        at, which = registers[base], registers[parity]
        if at.__class__ is not int or which.__class__ is not int:
            at, which = uniform(at, warp.mask), uniform(which, warp.mask)
            if at is None or which is None:
                raise instruction.unsupported("the lanes wait for different phases")
        barrier = mbarrier_at(warp, at + offset)
        if barrier.phase & 1 != which & 1:
            warp.acquire(*barrier.done)
            put(warp, ALL)
            return None
        if spins:
            barrier.waiting.append(warp)
            return BLOCKED
        put(warp, 0)
        return YIELD

    return step


def _spins(kernel: ptx.Kernel, start: int) -> bool:
    """Whether a failed wait does nothing but try again; the warp can sleep meanwhile."""
    for instruction in kernel.instructions[start + 1 : start + 8]:
        if instruction.opcode == "bra":
            (target,) = instruction.operands
            assert isinstance(target, ptx.Symbol)
            if kernel.labels[target.name] == start:
                return True
        elif instruction.opcode not in ("not", "setp", "selp", "mov"):
            return False
    return False


def _decode_bar(instruction: ptx.Instruction, program: Program) -> Step:
    """bar / barrier.cta .sync and .arrive; barrier.cluster."""
    modifiers = Modifiers(instruction)
    if modifiers.take("warp"):
        modifiers.need("sync")
        modifiers.done()
        return _whole_warp
    if modifiers.take("cluster"):
        return _decode_cluster(instruction, modifiers)
    modifiers.take("cta")
    waits = modifiers.need("sync", "arrive") == "sync"
    modifiers.take("aligned")
    modifiers.done()
    number = program.source(instruction.operands[0], 32)
    threads = None
    if len(instruction.operands) > 1:
        threads = program.source(instruction.operands[1], 32)
    waiting = object()  # the key of a warp's note that it has arrived here

    def step(warp: Any) -> int | None:
        if (blocked := warp.converge()) is not None:
            return blocked
        which = pick(warp.registers[number], warp.mask)
        if which > 15:
            raise Hazard(Kind.BARRIER, f"there is no barrier {which}")
        barrier = warp.cta.named.setdefault(which, NamedBarrier(which))
        phase = warp.state.pop(waiting, None)
        if phase is None:
            everyone = (warp.cta.threads + 31) // 32 * 32
            count = everyone if threads is None else pick(warp.registers[threads], warp.mask)
            phase = barrier.arrive(warp, count)
            if not waits:
                return None
        if len(barrier.done) > phase:
            warp.acquire(*barrier.done[phase])
            return None
        warp.state[waiting] = phase
        barrier.waiting.append(warp)
        return BLOCKED

    return step


def _whole_warp(warp: Any) -> int | None:
    return warp.converge()


def _decode_cluster(instruction: ptx.Instruction, modifiers: Modifiers) -> Step:
    operation = modifiers.need("arrive", "wait")
    relaxed = modifiers.take("release", "relaxed", "acquire") == "relaxed"
    modifiers.take("aligned")
    modifiers.done()

    def arrive(warp: Any) -> int | None:
        if (blocked := warp.converge()) is not None:
            return blocked
        barrier = warp.cluster.barrier
        if "cluster" in warp.state:
            raise Hazard(Kind.BARRIER, "barrier.cluster.arrive twice without a wait between")
        warp.state["cluster"] = len(barrier.done)
        barrier.arrive(warp, *((warp.released, warp.fenced) if relaxed else warp.release()))
        return None

    def wait(warp: Any) -> int | None:
        if (blocked := warp.converge()) is not None:
            return blocked
        barrier = warp.cluster.barrier
        if "cluster" not in warp.state:
            raise Hazard(Kind.BARRIER, "barrier.cluster.wait without an arrive")
        phase = warp.state["cluster"]
        if phase == len(barrier.done):
            barrier.waiting.append(warp)
            return BLOCKED
        del warp.state["cluster"]
        warp.acquire(*barrier.done[phase])
        return None

    return arrive if operation == "arrive" else wait


def _decode_fence(instruction: ptx.Instruction, program: Program) -> Step:
    modifiers = Modifiers(instruction)
    if modifiers.take("mbarrier_init"):
        modifiers.need("release")
        modifiers.need("cluster")
        modifiers.done()

        def mbarrier_init(warp: Any) -> None:
            warp.released |= warp.inits
            warp.init_span = 0

        return mbarrier_init
    if modifiers.take("proxy"):
        kind = modifiers.need("async", "alias")
        modifiers.take("global", "shared::cta", "shared::cluster")
        modifiers.done()

        def proxy(warp: Any) -> None:
            if kind == "async":
                warp.release()
                warp.fenced |= warp.seen

        return proxy
    modifiers.take("acq_rel", "sc", "acquire", "release")
    wide = modifiers.take("cta", "cluster", "gpu", "sys", "gl") not in ("cta", "cluster")
    modifiers.done()

    def fence(warp: Any) -> None:
        seen, _ = warp.release()
        warp.released |= seen
        if wide:
            warp.release_to_gpu()
            warp.acquire_from_gpu()

    return fence


DECODERS: Mapping[str, Decoder] = {
    "mbarrier": _decode_mbarrier,
    "bar": _decode_bar,
    "barrier": _decode_bar,
    "fence": _decode_fence,
    "membar": _decode_fence,
}
