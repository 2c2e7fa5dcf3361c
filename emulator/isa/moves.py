"""Moves, comparisons and selection (PTX ISA: mov, setp, selp)."""

import operator
from collections.abc import Mapping
from typing import Any

import numpy as np

from nvfp4.emulator import ptx
from nvfp4.emulator.isa import halves
from nvfp4.emulator.isa.builder import Builder, Decoder
from nvfp4.emulator.isa.modifiers import Modifiers
from nvfp4.emulator.lanes import (
    ALL,
    DTYPES,
    FLOATS,
    SIGNED,
    Loading,
    flags,
    lane_set,
    signed,
    spread,
)
from nvfp4.emulator.machine.program import Step
from nvfp4.emulator.machine.special_registers import CLOCKS


def _decode_mov(instruction: ptx.Instruction, builder: Builder) -> Step:
    """Decode mov, which also packs and unpacks vectors."""
    modifiers = Modifiers(instruction)
    letter, bits = modifiers.type()
    modifiers.done()
    into, source = instruction.operands
    if isinstance(source, ptx.Vector):
        return _pack(builder, into, source, bits)
    if isinstance(into, ptx.Vector):
        return _unpack(builder, into, source, bits)
    if isinstance(source, ptx.Symbol) and source.name in CLOCKS:
        put = builder.put(into, bits)
        return lambda warp: put(warp, warp.machine.time & (1 << bits) - 1)
    put, slot = builder.put(into, bits), builder.source(source, bits)
    return lambda warp: put(warp, _defined(warp.registers[slot]))


def _defined(value: Any) -> Any:
    if value is None or value.__class__ is Loading:
        raise TypeError("a register without a value")
    return value


def _pack(builder: Builder, into: ptx.Operand, source: ptx.Vector, bits: int) -> Step:
    each = bits // len(source.items)
    slots = [builder.source(item, each) for item in source.items]
    put = builder.put(into, bits)
    dtype = DTYPES[bits]

    def step(warp: Any) -> None:
        values = [warp.registers[slot] for slot in slots]
        if all(v.__class__ is int for v in values):
            put(warp, sum(v << each * i for i, v in enumerate(values)))
            return
        parts = np.empty((32, len(values)), DTYPES[each])
        for i, value in enumerate(values):
            parts[:, i] = _defined(value)
        put(warp, parts.view(dtype)[:, 0])

    return step


def _unpack(builder: Builder, into: ptx.Vector, source: ptx.Operand, bits: int) -> Step:
    each = bits // len(into.items)
    slot = builder.source(source, bits)
    puts = [
        (i, builder.put(item, each))
        for i, item in enumerate(into.items)
        if not isinstance(item, ptx.Sink)
    ]
    wrap = (1 << each) - 1
    count, dtype = len(into.items), DTYPES[each]

    def step(warp: Any) -> None:
        value = _defined(warp.registers[slot])
        if value.__class__ is int:
            for i, put in puts:
                put(warp, value >> each * i & wrap)
            return
        parts = np.ascontiguousarray(value).view(dtype)
        for i, put in puts:
            put(warp, parts[i::count])

    return step


def _decode_selp(instruction: ptx.Instruction, builder: Builder) -> Step:
    modifiers = Modifiers(instruction)
    _, bits = modifiers.type()
    modifiers.done()
    into, a, b, p = instruction.operands
    put = builder.put(into, bits)
    yes, no = builder.source(a, bits), builder.source(b, bits)
    predicate, flip = builder.predicate(p)

    def step(warp: Any) -> None:
        registers = warp.registers
        lanes = (registers[predicate] ^ flip) & warp.mask
        if lanes == warp.mask:
            put(warp, _defined(registers[yes]))
        elif not lanes:
            put(warp, _defined(registers[no]))
        else:
            put(
                warp,
                np.where(flags(lanes), spread(registers[yes], bits), spread(registers[no], bits)),
            )

    return step


_COMPARE: Mapping[str, Any] = {
    "eq": operator.eq, "ne": operator.ne, "lt": operator.lt, "le": operator.le,
    "gt": operator.gt, "ge": operator.ge, "lo": operator.lt, "ls": operator.le,
    "hi": operator.gt, "hs": operator.ge,
}  # fmt: skip


_COMBINE: Mapping[str, Any] = {"and": operator.and_, "or": operator.or_, "xor": operator.xor}


def _decode_setp(instruction: ptx.Instruction, builder: Builder) -> Step:
    if instruction.modifiers[-1] in halves.KINDS[1:]:
        return halves.decode_setp(instruction, builder)
    modifiers = Modifiers(instruction)
    letter, bits = modifiers.type()
    unordered = ""
    name = modifiers.take(*_COMPARE)
    if not name and letter == "f":
        unordered = modifiers.need("equ", "neu", "ltu", "leu", "gtu", "geu", "num", "nan")
        name = unordered[:2] if unordered not in ("num", "nan") else "eq"
    elif not name:
        modifiers.need(*_COMPARE)
    combine = modifiers.take(*_COMBINE)
    if letter == "f":
        modifiers.take("ftz")
    modifiers.done()
    compare = _COMPARE[name]
    into, a, b, *rest = instruction.operands
    first, second = (into.first, into.second) if isinstance(into, ptx.Pair) else (into, None)
    put = builder.put(first, 1)
    put_other = builder.put(second, 1) if second is not None else None
    x_slot, y_slot = builder.source(a, bits), builder.source(b, bits)
    other, flip = builder.predicate(rest[0]) if combine else (0, 0)
    wrap, sign = (1 << bits) - 1, letter == "s"
    kinds = {"s": SIGNED, "f": FLOATS}.get(letter, DTYPES)
    narrow = builder.bits[x_slot] > bits or builder.bits[y_slot] > bits

    def step(warp: Any) -> None:
        registers = warp.registers
        x, y = registers[x_slot], registers[y_slot]
        if x.__class__ is int and y.__class__ is int and letter != "f":
            if narrow:
                x, y = x & wrap, y & wrap
            if sign:
                x, y = signed(x, bits), signed(y, bits)
            lanes = ALL if compare(x, y) else 0
        else:
            left, right = spread(x, bits).view(kinds[bits]), spread(y, bits).view(kinds[bits])
            true = compare(left, right)
            if letter == "f" and (unordered or name == "ne"):
                nan = np.isnan(left) | np.isnan(right)
                if unordered in ("num", "nan"):
                    true = nan if unordered == "nan" else ~nan
                else:
                    true = true | nan if unordered else true & ~nan
            lanes = lane_set(true)
        inverse = lanes ^ ALL
        if combine:
            with_ = registers[other] ^ flip
            lanes, inverse = _COMBINE[combine](lanes, with_), _COMBINE[combine](inverse, with_)
        put(warp, lanes)
        if put_other is not None:
            put_other(warp, inverse)

    return step


DECODERS: Mapping[str, Decoder] = {
    "mov": _decode_mov,
    "selp": _decode_selp,
    "setp": _decode_setp,
}
