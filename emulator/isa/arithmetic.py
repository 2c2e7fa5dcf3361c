"""Integer arithmetic (PTX ISA: Integer Arithmetic Instructions); floats go to floats.py."""

from collections.abc import Mapping

from nvfp4.emulator import ptx
from nvfp4.emulator.isa.builder import Builder, Decoder, Lanes
from nvfp4.emulator.isa.elementwise import elementwise, is_float, typed
from nvfp4.emulator.isa.floats import decode
from nvfp4.emulator.isa.modifiers import Modifiers


def _decode_add(instruction: ptx.Instruction, builder: Builder) -> Lanes:
    """Decode add and sub."""
    if is_float(instruction):
        return decode(instruction, builder)
    _, bits = typed(instruction)
    return elementwise(instruction, builder, f"{instruction.opcode}_u{bits}", bits)


def _decode_mul(instruction: ptx.Instruction, builder: Builder) -> Lanes:
    """Decode mul and mad with .lo, .hi and .wide."""
    if is_float(instruction):
        return decode(instruction, builder)
    modifiers = Modifiers(instruction)
    letter, bits = modifiers.type()
    part = modifiers.need("lo", "hi", "wide")
    modifiers.done()
    result = bits * 2 if part == "wide" else bits
    kind = "u" if part == "lo" or letter != "s" else "s"
    widths = (bits, bits, result) if instruction.opcode == "mad" else (bits, bits)
    into, *operands = instruction.operands
    name = f"{instruction.opcode}_{part}_{kind}{bits}"
    return builder.lanes(name, into, result, operands, widths)


def _decode_of_type(instruction: ptx.Instruction, builder: Builder) -> Lanes:
    """Decode min, max, div and rem, for which signed and unsigned numbers differ."""
    if is_float(instruction):
        return decode(instruction, builder)
    letter, bits = typed(instruction)
    kind = "s" if letter == "s" else "u"
    return elementwise(instruction, builder, f"{instruction.opcode}_{kind}{bits}", bits)


def _decode_sign(instruction: ptx.Instruction, builder: Builder) -> Lanes:
    """Decode neg and abs."""
    if is_float(instruction):
        return decode(instruction, builder)
    _, bits = typed(instruction)
    return elementwise(instruction, builder, f"{instruction.opcode}_s{bits}", bits, 1)


DECODERS: Mapping[str, Decoder] = {
    "add": _decode_add,
    "sub": _decode_add,
    "mul": _decode_mul,
    "mad": _decode_mul,
    "min": _decode_of_type,
    "max": _decode_of_type,
    "neg": _decode_sign,
    "abs": _decode_sign,
    "div": _decode_of_type,
    "rem": _decode_of_type,
}
