"""Branches, and exchanges between the lanes of a warp (PTX ISA: Control Flow; shfl, vote)."""

from collections.abc import Mapping
from typing import Any

import numpy as np

from nvfp4.emulator import ptx
from nvfp4.emulator.engine.records import Does, Record
from nvfp4.emulator.hazards import Hazard, Kind
from nvfp4.emulator.isa.builder import Builder, Decoder, Lanes
from nvfp4.emulator.isa.modifiers import Modifiers
from nvfp4.emulator.lanes import ALL, LANES, lane_set, lowest, members, pick, spread
from nvfp4.emulator.machine.outcomes import ENDED, YIELD
from nvfp4.emulator.machine.program import Step


def _decode_bra(instruction: ptx.Instruction, builder: Builder) -> Lanes:
    """Decode bra; the engine leaves it to this step where the warp splits."""
    modifiers = Modifiers(instruction)
    modifiers.take("uni")
    modifiers.done()
    (label,) = instruction.operands
    assert isinstance(label, ptx.Symbol)
    target = builder.kernel.labels[label.name]
    record = Record(Does.BRANCH, immediate=target)
    if instruction.guard is None:
        return Lanes([record], lambda warp: target)
    predicate, flip = builder.predicate(instruction.guard)
    after = builder.index + 1

    def step(warp: Any) -> int | None:
        taken = (warp.registers[predicate] ^ flip) & warp.mask
        if not taken:
            return None
        if taken == warp.mask:
            return target
        return warp.diverge(target, taken, after)

    return Lanes([record.guarded(predicate, flip)], step)


def _decode_brx(instruction: ptx.Instruction, builder: Builder) -> Step:
    """Decode brx.idx, a jump to the label that an index chooses from a list."""
    modifiers = Modifiers(instruction, "idx")
    modifiers.take("uni")
    modifiers.done()
    index, table = instruction.operands
    assert isinstance(table, ptx.Symbol)
    if instruction.guard is not None:
        raise instruction.unsupported("only without a predicate")
    labels = [builder.kernel.labels[name] for name in builder.kernel.targets[table.name]]
    slot = builder.source(index, 32)

    def step(warp: Any) -> int | None:
        values = spread(warp.registers[slot], 32)
        chosen = np.unique(values[members(warp.mask)]).tolist()
        if chosen[-1] >= len(labels):
            raise Hazard(Kind.OUT_OF_BOUNDS, f"label {chosen[-1]} of a list of {len(labels)}")
        last = labels[chosen.pop()]
        if not chosen:
            return last
        mask = warp.mask
        for number in chosen[1:]:
            lanes = lane_set(values == number) & mask
            warp.fragments.append([labels[number], lanes, 0])
            warp.mask &= ~lanes
        return warp.diverge(labels[chosen[0]], lane_set(values == chosen[0]) & mask, last)

    return step


def _decode_exit(instruction: ptx.Instruction, builder: Builder) -> Step:
    modifiers = Modifiers(instruction)
    modifiers.take("uni")
    modifiers.done()
    if instruction.guard is not None:
        raise instruction.unsupported("only without a predicate")
    return lambda warp: ENDED


def _decode_trap(instruction: ptx.Instruction, builder: Builder) -> Step:
    Modifiers(instruction).done()

    def step(warp: Any) -> None:
        raise RuntimeError("the kernel executed trap")

    return step


def _member_mask(warp: Any, mask: int) -> int | None:
    """Wait for the lanes that a .sync instruction names."""
    if mask & ~warp.mask & warp.live:
        return warp.converge()
    if warp.mask & ~mask:
        raise Hazard(Kind.PARTIAL_WARP, f"lanes {warp.mask:#x} run this for the lanes {mask:#x}")
    return None


def _decode_elect(instruction: ptx.Instruction, builder: Builder) -> Step:
    Modifiers(instruction, "sync").done()
    pair, mask_operand = instruction.operands
    assert isinstance(pair, ptx.Pair)
    leader, predicate = builder.put(pair.first, 32), builder.put(pair.second, 1)
    mask = builder.source(mask_operand, 32)

    def step(warp: Any) -> int | None:
        if (blocked := _member_mask(warp, pick(warp.registers[mask], warp.mask))) is not None:
            return blocked
        lane = lowest(warp.mask)
        leader(warp, lane)
        predicate(warp, 1 << lane)
        return None

    return step


_SHUFFLES = ("idx", "up", "down", "bfly")
"""The modes of shfl, in the order of their numbers in engine.c."""


def _decode_shfl(instruction: ptx.Instruction, builder: Builder) -> Lanes:
    """Decode shfl; its `c` packs the segment mask (bits 8-12) and the clamp (bits 0-4).

    The engine runs it for whole warps, and leaves the others to this step.
    """
    modifiers = Modifiers(instruction, "sync")
    mode = modifiers.need(*_SHUFFLES)
    modifiers.need("b32")
    modifiers.done()
    into, a, b, c, m = instruction.operands
    valid = second = None
    if isinstance(into, ptx.Pair):
        valid, second = builder.put(into.second, 1), builder.result(into.second, 1)
        into = into.first
    put = builder.put(into, 32)
    source, lane_operand, control, mask = (builder.source(x, 32) for x in (a, b, c, m))
    own = np.arange(LANES)

    def step(warp: Any) -> int | None:
        registers = warp.registers
        if (blocked := _member_mask(warp, pick(registers[mask], warp.mask))) is not None:
            return blocked
        value, by, how = registers[source], registers[lane_operand], registers[control]
        by = spread(by, 32).astype(np.int64) & 31
        how = spread(how, 32).astype(np.int64)
        clamp, segment = how & 31, how >> 8 & 31
        last = own & segment | clamp & ~segment
        first = own & segment
        if mode == "up":
            lane = own - by
            inside = lane >= last
        elif mode == "idx":
            lane = first | by & ~segment
            inside = lane <= last
        else:
            lane = own + by if mode == "down" else own ^ by
            inside = lane <= last
        lane = np.where(inside, lane, own)
        for outside in lane[members(warp.mask)].tolist():
            if not warp.mask >> outside & 1:
                raise Hazard(Kind.PARTIAL_WARP, f"shfl from lane {outside}, which does not run it")
        put(warp, spread(value, 32)[lane])
        if valid is not None:
            valid(warp, lane_set(inside))
        return None

    to = builder.result(into, 32)
    sources = (source, lane_operand, control, mask)
    record = Record(Does.SHUFFLE, 0, to, sources, _SHUFFLES.index(mode), other=second)
    return Lanes([record], step)


def _decode_vote(instruction: ptx.Instruction, builder: Builder) -> Step:
    modifiers = Modifiers(instruction, "sync")
    mode = modifiers.need("all", "any", "uni", "ballot")
    modifiers.need("b32" if mode == "ballot" else "pred")
    modifiers.done()
    put = builder.put(instruction.operands[0], 32 if mode == "ballot" else 1)
    predicate, flip = builder.predicate(instruction.operands[1])
    mask = builder.source(instruction.operands[2], 32)

    def step(warp: Any) -> int | None:
        if (blocked := _member_mask(warp, pick(warp.registers[mask], warp.mask))) is not None:
            return blocked
        true = (warp.registers[predicate] ^ flip) & warp.mask
        if mode == "ballot":
            put(warp, true)
        else:
            yes = {"all": true == warp.mask, "any": true != 0, "uni": true in (0, warp.mask)}
            put(warp, ALL if yes[mode] else 0)
        return None

    return step


_REDUCTIONS: Mapping[str, Any] = {
    "add": np.sum,
    "min": np.min,
    "max": np.max,
    "and": np.bitwise_and.reduce,
    "or": np.bitwise_or.reduce,
    "xor": np.bitwise_xor.reduce,
}


def _extreme_float(words: np.ndarray, highest: bool, propagates: bool) -> int:
    """Give the largest or smallest float32; -0 is below +0, and NaNs count only if they propagate.

    The canonical NaN is the result if nothing else is left.
    """
    nan = np.isnan(words.view(np.float32))
    if nan.all() or propagates and nan.any():
        return 0x7FFFFFFF
    words = words[~nan]
    order = np.where(words >> 31, ~words, words | np.uint32(0x80000000))  # ascending, as integers
    return int(words[order.argmax() if highest else order.argmin()])


def _decode_redux(instruction: ptx.Instruction, builder: Builder) -> Step:
    modifiers = Modifiers(instruction, "sync")
    letter, bits = modifiers.type()
    operation = modifiers.need("add", "min", "max", "and", "or", "xor")
    absolute = letter == "f" and bool(modifiers.take("abs"))
    propagates = letter == "f" and bool(modifiers.take("NaN"))
    modifiers.done()
    if bits != 32 or letter == "f" and operation not in ("min", "max"):
        raise instruction.unsupported("integers of 32 bits, and min and max of f32, only")
    put = builder.put(instruction.operands[0], 32)
    source = builder.source(instruction.operands[1], 32)
    mask = builder.source(instruction.operands[2], 32)
    reduce: Any = _REDUCTIONS[operation]

    def step(warp: Any) -> int | None:
        if (blocked := _member_mask(warp, pick(warp.registers[mask], warp.mask))) is not None:
            return blocked
        values = spread(warp.registers[source], 32)[members(warp.mask)]
        if letter == "s":
            values = values.view(np.int32)
        if letter == "f":
            magnitude = np.uint32(0x7FFFFFFF if absolute else 0xFFFFFFFF)
            put(warp, _extreme_float(values & magnitude, operation == "max", propagates))
            return None
        put(warp, int(reduce(values.astype(np.int64))) & 0xFFFFFFFF)
        return None

    return step


def _decode_activemask(instruction: ptx.Instruction, builder: Builder) -> Step:
    Modifiers(instruction, "b32").done()
    put = builder.put(instruction.operands[0], 32)
    return lambda warp: put(warp, warp.mask)


def _decode_nanosleep(instruction: ptx.Instruction, builder: Builder) -> Step:
    Modifiers(instruction, "u32").done()
    return lambda warp: YIELD


def _decode_setmaxnreg(instruction: ptx.Instruction, builder: Builder) -> Step:
    """Decode setmaxnreg: its register budget is not modelled, but whole warps have to run it."""
    modifiers = Modifiers(instruction)
    modifiers.need("inc", "dec")
    modifiers.need("sync")
    modifiers.need("aligned")
    modifiers.need("u32")
    modifiers.done()
    (count,) = instruction.operands
    if not isinstance(count, ptx.Immediate) or not (
        isinstance(count.value, int) and 24 <= count.value <= 256 and count.value % 8 == 0
    ):
        raise instruction.unsupported("a count from 24 to 256 in steps of 8")
    return lambda warp: warp.converge()


def _decode_griddepcontrol(instruction: ptx.Instruction, builder: Builder) -> Step:
    """Decode griddepcontrol, whose wait finds all earlier launches ended here.

    A kernel that has the wait may access global memory only after it (Warp.access_global).
    """
    modifiers = Modifiers(instruction)
    kind = modifiers.need("wait", "launch_dependents")
    modifiers.done()

    def step(warp: Any) -> None:
        warp.machine.counts[f"griddepcontrol.{kind}"] += 1
        if kind == "wait":
            warp.wait_for_grids(instruction)

    return step


DECODERS: Mapping[str, Decoder] = {
    "bra": _decode_bra,
    "brx": _decode_brx,
    "ret": _decode_exit,
    "exit": _decode_exit,
    "trap": _decode_trap,
    "elect": _decode_elect,
    "shfl": _decode_shfl,
    "vote": _decode_vote,
    "redux": _decode_redux,
    "activemask": _decode_activemask,
    "nanosleep": _decode_nanosleep,
    "setmaxnreg": _decode_setmaxnreg,
    "griddepcontrol": _decode_griddepcontrol,
}
