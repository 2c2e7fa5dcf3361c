"""Moves, comparisons and selection (PTX ISA: mov, setp, selp)."""

from collections.abc import Mapping
from typing import Any

from nvfp4.emulator import ptx
from nvfp4.emulator.engine.records import COMBINE, Does, Record
from nvfp4.emulator.isa.bits import moved_predicate
from nvfp4.emulator.isa.builder import Builder, Decoded, Decoder, Lanes
from nvfp4.emulator.isa.elementwise import typed
from nvfp4.emulator.isa.modifiers import Modifiers
from nvfp4.emulator.machine.special_registers import CLOCKS


def _decode_mov(instruction: ptx.Instruction, builder: Builder) -> Decoded:
    """Decode mov, which also packs and unpacks vectors."""
    letter, bits = typed(instruction)
    into, source = instruction.operands
    if letter == "pred":
        return moved_predicate(builder, into, source, 0)
    if isinstance(source, ptx.Vector):
        each = bits // len(source.items)
        widths = (each,) * len(source.items)
        return builder.lanes(f"pack_u{bits}_u{each}", into, bits, source.items, widths)
    if isinstance(into, ptx.Vector):
        return _unpack(builder, into, source, bits)
    if isinstance(source, ptx.Symbol) and source.name in CLOCKS:
        put = builder.put(into, bits)

        def clock(warp: Any) -> None:
            put(warp, warp.machine.time & (1 << bits) - 1)

        return clock
    return builder.lanes(f"mov_u{bits}", into, bits, (source,), (bits,))


def _unpack(builder: Builder, into: ptx.Vector, source: ptx.Operand, bits: int) -> Lanes:
    each = bits // len(into.items)
    slot, records = builder.read(source, bits)
    for i, item in enumerate(into.items):
        if not isinstance(item, ptx.Sink):
            to, after = builder.write(item, each)
            name = f"unpack_u{each}_u{bits}"
            records += [builder.operation(name, to, slot, immediate=i), *after]
    return Lanes(records)


def _decode_selp(instruction: ptx.Instruction, builder: Builder) -> Lanes:
    _, bits = typed(instruction)
    into, a, b, p = instruction.operands
    (yes, before), (no, more) = builder.read(a, bits, 0), builder.read(b, bits, 1)
    predicate, flip = builder.predicate(p)
    to, after = builder.write(into, bits)
    select = Record(Does.SELECT, 0, to, (yes, no, predicate), flips=(flip, 0))
    return Lanes([*before, *more, select, *after])


_COMPARE = ("eq", "ne", "lt", "le", "gt", "ge")
_UNSIGNED: Mapping[str, str] = {"lo": "lt", "ls": "le", "hi": "gt", "hs": "ge"}
_UNORDERED = ("equ", "neu", "ltu", "leu", "gtu", "geu", "num", "nan")


def _decode_setp(instruction: ptx.Instruction, builder: Builder) -> Lanes:
    """Decode setp; for pairs it sets a predicate for each half, the low one first."""
    modifiers = Modifiers(instruction)
    kind = modifiers.take("bf16", "f16x2", "bf16x2")
    letter, bits = ("f", 32 if kind.endswith("x2") else 16) if kind else modifiers.type()
    floats = letter == "f"
    name = modifiers.need(*_COMPARE, *(_UNORDERED if floats else _UNSIGNED))
    combine = modifiers.take(*COMBINE)
    ftz = floats and bits == 32 and bool(modifiers.take("ftz"))
    modifiers.done()
    if not kind:
        signed = letter == "s" and name not in ("eq", "ne", *_UNSIGNED)
        kind = f"{'f' if floats else 's' if signed else 'u'}{bits}"
        name = _UNSIGNED.get(name, name)
    into, a, b, *rest = instruction.operands
    results = (into.first, into.second) if isinstance(into, ptx.Pair) else (into,)
    slots, records = [], []
    for number, operand in enumerate((a, b)):
        slot, narrowing = builder.read(operand, bits, number)
        records += narrowing
        if ftz:
            flushed = builder.scratch(bits, 5 + number)
            records.append(builder.operation("flush_f32", flushed, slot))
            slot = flushed
        slots.append(slot)
    other, flip = builder.predicate(rest[0]) if combine else (0, 0)
    to = [None if isinstance(result, ptx.Sink) else builder.result(result, 1) for result in results]
    if kind.endswith("x2"):
        if len(to) != 2 or combine:
            raise ValueError("a predicate for each element of the operands")
        return Lanes([*records, *_halves(builder, name, kind.removesuffix("x2"), to, slots)])
    first = builder.result(ptx.Sink(), 1) if to[0] is None else to[0]
    second = to[1] if len(to) > 1 else None
    number = builder.operation(f"{name}_{kind}", first).operation
    sources = (*slots, other)
    how = COMBINE[combine]
    test = Record(Does.TEST, number, first, sources, how, other=second, flips=(flip, 0))
    return Lanes([*records, test])


def _halves(
    builder: Builder, name: str, kind: str, to: list[int | None], slots: list[int]
) -> list[Record]:
    """Compare each half of packed pairs."""
    records: list[Record] = []
    for half, result in enumerate(to):
        parts = []
        for number, slot in enumerate(slots):
            part = builder.scratch(16, number)
            records.append(builder.operation("unpack_u16_u32", part, slot, immediate=half))
            parts.append(part)
        if result is not None:
            number = builder.operation(f"{name}_{kind}", result).operation
            records.append(Record(Does.TEST, number, result, (*parts, 0)))
    return records


DECODERS: Mapping[str, Decoder] = {
    "mov": _decode_mov,
    "selp": _decode_selp,
    "setp": _decode_setp,
}
