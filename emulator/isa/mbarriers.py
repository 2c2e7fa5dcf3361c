"""mbarrier (PTX ISA: Parallel Synchronization and Communication Instructions, mbarrier).

A phase hands what those that arrived have observed to those that wait for it; see shadow.py.
"""

from collections.abc import Mapping
from typing import Any

from nvfp4.emulator import ptx
from nvfp4.emulator.hazards import Event, Hazard, Kind
from nvfp4.emulator.isa.accesses import cta_at
from nvfp4.emulator.isa.program import (
    BLOCKED,
    YIELD,
    Decoder,
    Modifiers,
    Program,
    Step,
)
from nvfp4.emulator.lanes import ALL, members, pick, uniform
from nvfp4.emulator.memory.shadow import MBARRIER

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


DECODERS: Mapping[str, Decoder] = {"mbarrier": _decode_mbarrier}
