"""Floating point (PTX ISA: Floating Point, Half Precision and Mixed Precision Instructions).

Operations round once, to nearest even, and keep denormals unless .ftz flushes them. A NaN result is
canonical: 0x7fffffff, or 0x7fff in 16 bits. engine/operations.h has each operation.
"""

from collections.abc import Mapping

from nvfp4.emulator import ptx
from nvfp4.emulator.engine.records import Record
from nvfp4.emulator.isa.builder import Builder, Decoder, Lanes
from nvfp4.emulator.isa.modifiers import Modifiers

_BITS = {"f32": 32, "f64": 64, "f32x2": 64, "f16": 16, "bf16": 16, "f16x2": 32, "bf16x2": 32}
_HALVES = ("f16", "bf16", "f16x2", "bf16x2")
_FLUSHED = ("f32", "f32x2")
"""The types whose denormals .ftz flushes here."""
_SOURCES = {"fma": 3, **dict.fromkeys(("add", "sub", "mul", "div", "min", "max"), 2)}
"""The number of operands of an operation, where it is not one."""
_APPROXIMATE = ("rcp", "sqrt", "rsqrt", "ex2", "lg2", "tanh", "div")
"""Operations whose .approx and .full forms are inexact; here they are correctly rounded."""


def decode(instruction: ptx.Instruction, builder: Builder) -> Lanes:
    """Decode an arithmetic instruction on floats, or on pairs of them in one register."""
    modifiers = Modifiers(instruction)
    name = instruction.opcode
    kind = modifiers.need(*_BITS)
    if not modifiers.take("rn") and name in _APPROXIMATE:
        modifiers.take("approx", "full")
    ftz = kind in _FLUSHED and bool(modifiers.take("ftz"))
    relu = name == "fma" and kind in _HALVES and bool(modifiers.take("relu"))
    if name in ("min", "max") and modifiers.take("NaN"):
        name += "_NaN"
    modifiers.done()
    if kind in _HALVES and name in _APPROXIMATE:
        raise instruction.unsupported(f"{name} of {kind} is not known")
    bits = _BITS[kind]
    into, *operands = instruction.operands
    three = instruction.opcode in ("min", "max") and kind == "f32" and len(operands) == 3
    if len(operands) != _SOURCES.get(instruction.opcode, 1) and not three:
        raise ValueError(f"{len(operands)} operands behind the result")
    records: list[Record] = []
    sources = []
    for number, operand in enumerate(operands):
        slot, narrowing = builder.read(operand, bits, number)
        records += narrowing
        if ftz:
            flushed = builder.scratch(bits, number)
            records.append(builder.operation(f"flush_{kind}", flushed, slot))
            slot = flushed
        sources.append(slot)
    to, after = builder.write(into, bits)
    last = "flush" if ftz else "relu" if relu else ""
    if three:
        smaller = builder.scratch(bits, 6)
        records.append(builder.operation(f"{name}_{kind}", smaller, *sources[:2]))
        sources = [smaller, sources[2]]
    first = builder.scratch(bits, 5) if last else to
    records.append(builder.operation(f"{name}_{kind}", first, *sources))
    if last:
        records.append(builder.operation(f"{last}_{kind}", to, first))
    return Lanes([*records, *after])


DECODERS: Mapping[str, Decoder] = {
    **{name: decode for name in ("fma", "rcp", "sqrt", "rsqrt", "ex2", "lg2", "tanh")},
}
