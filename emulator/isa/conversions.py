"""Conversions (PTX ISA: cvt); floats round to nearest, ties to even."""

from collections.abc import Mapping
from dataclasses import replace

from nvfp4.emulator import ptx
from nvfp4.emulator.engine.records import Record
from nvfp4.emulator.isa.builder import Builder, Decoder, Lanes
from nvfp4.emulator.isa.modifiers import Modifiers

_PAIRS = {"bf16x2": 32, "f16x2": 32, "e4m3x2": 16, "e2m1x2": 8}
"""The bits of two packed floats."""


def _decode_cvt(instruction: ptx.Instruction, builder: Builder) -> Lanes:
    *_, to_name, from_name = instruction.modifiers
    if from_name == "e4m3x2":
        return _decode_cvt_from_e4m3(instruction, builder)
    if len(instruction.operands) == 3 and from_name == "f32":
        return _decode_cvt_pair(instruction, builder)
    modifiers = Modifiers(instruction)
    modifiers.take(from_name)
    modifiers.take(to_name)
    source, to = _kind(from_name, instruction), _kind(to_name, instruction)
    rounding = modifiers.take("rn", "rz", "rm", "rp", "rni", "rzi", "rmi", "rpi")
    saturates = bool(modifiers.take("sat"))
    ftz = bool(modifiers.take("ftz"))
    modifiers.done()
    if ftz and "f32" not in (from_name, to_name):
        raise instruction.unsupported("only float32 is flushed")
    into, operand = instruction.operands
    slot, records = builder.read(operand, source[1])
    path = _Path(builder, records, slot, source)
    if ftz and from_name == "f32":
        path.apply("flush_f32", ("f", 32))
    if "f" not in source[0] + to[0]:
        _integers(path, to, saturates)
    elif "f" not in to[0]:
        path.convert(("f", 64))
        path.apply(f"{rounding or 'rzi'}_f64", ("f", 64))
        wide = 64 in (source[1], to[1])
        path.apply(f"cvt_{_name(to)}_f64", to, int(wide))
    else:
        exact = source == to or "f" in source[0] and source[1] < to[1]
        if saturates or not exact and rounding != "rn":
            raise instruction.unsupported("only with .rn and without .sat")
        if to[0] == "bf" and source != ("f", 32):
            raise instruction.unsupported("to bf16 from f32 only")
        if rounding.endswith("i"):
            path.convert(("f", 64))
            path.apply(f"{rounding}_f64", ("f", 64))
        path.convert(to)
        if ftz and to_name == "f32":
            path.apply("flush_f32", ("f", 32))
    result, after = builder.write(into, to[1], signed=to[0] == "s")
    return Lanes([*path.into(result), *after])


def _kind(name: str, instruction: ptx.Instruction) -> tuple[str, int]:
    """Give a type's letters (u, s, f, bf) and its bits."""
    letters = name.rstrip("0123456789")
    if letters not in ("b", "u", "s", "f", "bf") or letters == name:
        raise instruction.unsupported(f"the type .{name} is not known")
    return "u" if letters == "b" else letters, int(name[len(letters) :])


def _name(kind: tuple[str, int]) -> str:
    return f"{kind[0]}{kind[1]}"


_FIRST = 5
"""The number of scratch slots that Builder uses itself."""


class _Path:
    """The records by which a value goes from one type to the next."""

    def __init__(
        self, builder: Builder, records: list[Record], slot: int, kind: tuple[str, int]
    ) -> None:
        self._builder, self._records = builder, records
        self._slot, self.kind = slot, kind
        self._number = _FIRST

    def apply(self, name: str, kind: tuple[str, int], immediate: int = 0) -> None:
        """Go on with the result of an operation, which has this type."""
        self._number += 1
        to = self._builder.scratch(kind[1], self._number)
        operation = self._builder.operation(name, to, self._slot, immediate=immediate)
        self._records.append(operation)
        self._slot, self.kind = to, kind

    def convert(self, kind: tuple[str, int]) -> None:
        """Go on in another type of the same kind, or from an integer in a float."""
        if kind != self.kind:
            self.apply(f"cvt_{_name(kind)}_{_name(self.kind)}", kind)

    def into(self, slot: int) -> list[Record]:
        """Give the records, of which the last one writes to this slot."""
        if self._number == _FIRST:
            self.apply(f"mov_u{self.kind[1]}", self.kind)
        *records, last = self._records
        return [*records, replace(last, to=slot)]


def _integers(path: _Path, to: tuple[str, int], saturates: bool) -> None:
    """Convert between integers: extended as the source's type, or truncated."""
    letter, bits = path.kind
    if saturates:
        path.convert((letter, 64))
        path.apply(f"sat_{_name(to)}_{letter}64", ("u", 64))
    _, bits = path.kind
    if to[1] > bits:
        path.convert((letter, to[1]))
    elif to[1] < bits:
        path.apply(f"cvt_u{to[1]}_u{bits}", to)


def _decode_cvt_from_e4m3(instruction: ptx.Instruction, builder: Builder) -> Lanes:
    """Decode cvt.rn.f16x2.e4m3x2: two codes become two float16, in order."""
    modifiers = Modifiers(instruction, "e4m3x2")
    modifiers.need("f16x2")
    modifiers.need("rn")
    modifiers.done()
    into, *operands = instruction.operands
    return builder.lanes("cvt_f16x2_e4m3x2", into, 32, operands, (16,))


def _decode_cvt_pair(instruction: ptx.Instruction, builder: Builder) -> Lanes:
    """Decode cvt.rn.<pair>.f32 d, a, b: a becomes the upper half of d, b the lower."""
    modifiers = Modifiers(instruction, "f32")
    modifiers.need("rn")
    kind = modifiers.need(*_PAIRS)
    if kind in ("e4m3x2", "e2m1x2"):
        modifiers.need("satfinite")
    modifiers.done()
    into, *operands = instruction.operands
    return builder.lanes(f"cvt_{kind}_f32", into, _PAIRS[kind], operands, (32, 32))


DECODERS: Mapping[str, Decoder] = {"cvt": _decode_cvt}
