"""The mbarrier instructions (PTX ISA: Parallel Synchronization and Communication Instructions).

A phase passes what the arriving warps have observed on to the waiting ones (memory/shadow.py).
"""

from collections.abc import Mapping
from typing import Any

from nvfp4.emulator import ptx
from nvfp4.emulator.hazards import Hazard, Kind
from nvfp4.emulator.isa.builder import Builder, Decoder
from nvfp4.emulator.isa.modifiers import Modifiers
from nvfp4.emulator.lanes import ALL, members, pick, uniform
from nvfp4.emulator.machine.mbarrier import TX_LIMIT, Mbarrier
from nvfp4.emulator.machine.outcomes import BLOCKED, YIELD
from nvfp4.emulator.machine.program import Step
from nvfp4.emulator.machine.shared_addresses import cta_at, mbarrier_at
from nvfp4.emulator.memory.addresses import RANK_SHIFT
from nvfp4.emulator.memory.shadow import MBARRIER


def _decode_mbarrier(instruction: ptx.Instruction, builder: Builder) -> Step:
    modifiers = Modifiers(instruction)
    operation = modifiers.need("init", "inval", "arrive", "test_wait", "try_wait", "expect_tx")
    return {
        "init": _init,
        "inval": _inval,
        "arrive": _arrive,
        "expect_tx": _arrive,
        "test_wait": _wait,
        "try_wait": _wait,
    }[operation](instruction, builder, modifiers)


def _init(instruction: ptx.Instruction, builder: Builder, modifiers: Modifiers) -> Step:
    modifiers.take("shared", "shared::cta")
    modifiers.need("b64")
    modifiers.done()
    base, offset = builder.address(instruction.operands[0])
    count = builder.source(instruction.operands[1], 32)

    def step(warp: Any) -> None:
        address = warp.uniform(base, "mbarrier") + offset
        arrivals = pick(warp.registers[count], warp.mask)
        cta, at = cta_at(warp, address)
        if at % 8:
            raise Hazard(Kind.MISALIGNED, f"an mbarrier at {address:#x}")
        cta.shared.bound(at, at + 8)
        if at in cta.mbarriers:
            raise Hazard(Kind.MBARRIER, f"the mbarrier at {address:#x} is initialised twice")
        if not 1 <= arrivals <= TX_LIMIT:
            raise Hazard(Kind.MBARRIER, f"an mbarrier for {arrivals} arrivals")
        if not warp.init_span:
            warp.init_span = warp.new_event("mbarrier.init", instruction)
            warp.seen |= 1 << warp.init_span
            warp.inits |= 1 << warp.init_span
        shadow = cta.shared.shadow
        if warp.machine.options.check:
            shadow.write(slice(at, at + 8), MBARRIER, warp.seen)
        cta.mbarriers[at] = Mbarrier(arrivals, warp.init_span, f"mbarrier {address:#x}")

    return step


def _inval(instruction: ptx.Instruction, builder: Builder, modifiers: Modifiers) -> Step:
    modifiers.take("shared", "shared::cta")
    modifiers.need("b64")
    modifiers.done()
    base, offset = builder.address(instruction.operands[0])

    def step(warp: Any) -> None:
        address = warp.uniform(base, "mbarrier") + offset
        barrier = mbarrier_at(warp, address)
        if barrier.pending != barrier.count or barrier.tx:
            raise Hazard(Kind.MBARRIER, f"{barrier.where} is invalidated within a phase")
        cta, at = cta_at(warp, address)
        del cta.mbarriers[at]
        cta.shared.shadow.writer[at : at + 8] = 0

    return step


def _arrive(instruction: ptx.Instruction, builder: Builder, modifiers: Modifiers) -> Step:
    """Decode arrive, arrive.expect_tx and expect_tx, in which each active lane counts."""
    counts = "arrive" in instruction.modifiers
    expects = bool(modifiers.take("expect_tx")) or not counts
    modifiers.take("noComplete")
    releases = modifiers.take("release", "relaxed") != "relaxed" and counts
    wide = modifiers.take("cta", "cluster") == "cluster"
    modifiers.take("shared", "shared::cta", "shared::cluster")
    modifiers.need("b64")
    modifiers.done()
    operands = list(instruction.operands)
    put = None
    if not isinstance(operands[0], ptx.Address):
        put = builder.put(operands.pop(0), 64)
    base, offset = builder.address(operands[0])
    value = builder.source(operands[1], 32) if len(operands) > 1 else None

    def step(warp: Any) -> None:
        registers, mask = warp.registers, warp.mask
        amount = registers[value] if value is not None else 1
        address = registers[base]
        one, each = uniform(address, mask), uniform(amount, mask)
        if one is not None and each is not None:
            groups = [(one + offset, each, mask.bit_count())]
        else:
            groups = [
                (pick(address, 1 << lane) + offset, pick(amount, 1 << lane), 1)
                for lane in members(mask).tolist()
            ]
        for at, each, lanes in groups:
            barrier = mbarrier_at(warp, at)
            arrivals = 0 if not counts else lanes if expects else lanes * each
            here = at >> RANK_SHIFT == warp.cta.rank
            if not here:
                _announce(warp, at, instruction)
            passed = warp.arrival(releases, wide, here)
            barrier.arrive(arrivals, lanes * each if expects else 0, passed)
        if put is not None:
            put(warp, 0)  # the state, which nothing uses: waits are by parity

    return step


def _announce(warp: Any, address: int, instruction: ptx.Instruction) -> None:
    """Make an arrival at another CTA's mbarrier an event, which that CTA may not exit before."""
    cta, _ = cta_at(warp, address)
    cta.incoming |= 1 << warp.executes("an arrival at its mbarrier", instruction)


def _wait(instruction: ptx.Instruction, builder: Builder, modifiers: Modifiers) -> Step:
    modifiers.need("parity")
    acquires = modifiers.take("acquire", "relaxed") != "relaxed"
    wide = modifiers.take("cta", "cluster") == "cluster"
    modifiers.take("shared", "shared::cta")
    modifiers.need("b64")
    modifiers.done()
    predicate, address, parity_operand, *_ = instruction.operands
    put = builder.put(predicate, 1)
    base, offset = builder.address(address)
    parity = builder.source(parity_operand, 32)
    spins = _spins(builder.kernel, builder.index)

    def step(warp: Any) -> int | None:
        registers = warp.registers
        at, which = registers[base], registers[parity]
        at, which = uniform(at, warp.mask), uniform(which, warp.mask)
        if at is None or which is None:
            raise instruction.unsupported("the lanes wait for different phases")
        barrier = mbarrier_at(warp, at + offset)
        if barrier.phase & 1 != which & 1:
            warp.acquire(barrier.done, acquires, wide)
            if warp.machine.options.check:
                barrier.waits[warp] = (barrier.phase - 1, warp.executes("a wait", instruction))
            put(warp, ALL)
            return None
        barrier.check_missed(warp)
        if spins:
            barrier.waiting.append(warp)
            return BLOCKED
        put(warp, 0)
        return YIELD

    return step


def _spins(kernel: ptx.Kernel, start: int) -> bool:
    """Say whether a failed wait only tries again, so that the warp can sleep meanwhile."""
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
