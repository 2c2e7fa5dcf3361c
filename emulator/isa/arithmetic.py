"""Integer arithmetic (PTX ISA: Integer Arithmetic Instructions); floats go to floats.py."""

import operator
from collections.abc import Mapping

import numpy as np

from nvfp4.emulator import ptx
from nvfp4.emulator.isa.builder import Builder, Decoder
from nvfp4.emulator.isa.elementwise import elementwise
from nvfp4.emulator.isa.floats import decode, is_float
from nvfp4.emulator.isa.modifiers import Modifiers
from nvfp4.emulator.lanes import DTYPES, SIGNED, signed
from nvfp4.emulator.machine.program import Step


def _decode_add(instruction: ptx.Instruction, builder: Builder) -> Step:
    """Decode add and sub."""
    if is_float(instruction):
        return decode(instruction, builder)
    modifiers = Modifiers(instruction)
    _, bits = modifiers.type()
    modifiers.done()
    function = operator.add if instruction.opcode == "add" else operator.sub
    return elementwise(builder, instruction, bits, function, function)


def _decode_mul(instruction: ptx.Instruction, builder: Builder) -> Step:
    """Decode mul and mad with .lo, .hi and .wide."""
    if is_float(instruction):
        return decode(instruction, builder)
    modifiers = Modifiers(instruction)
    letter, bits = modifiers.type()
    part = modifiers.need("lo", "hi", "wide")
    modifiers.done()
    result = bits * 2 if part == "wide" else bits
    shift = bits if part == "hi" else 0
    adds = instruction.opcode == "mad"

    def number(x: int) -> int:
        return signed(x, bits) if letter == "s" else x

    def scalar(x: int, y: int, z: int = 0) -> int:
        return (number(x) * number(y) >> shift) + z

    def vector(x: np.ndarray, y: np.ndarray, z: np.ndarray | None = None) -> np.ndarray:
        if part == "lo":
            product = x * y
        elif bits <= 32:
            wide = SIGNED[bits * 2] if letter == "s" else DTYPES[bits * 2]
            if letter == "s":
                x, y = x.view(SIGNED[bits]), y.view(SIGNED[bits])
            both = (x.astype(wide) * y.astype(wide)).view(DTYPES[bits * 2])
            product = both if part == "wide" else (both >> DTYPES[bits * 2](bits)).astype(x.dtype)
            product = product.view(DTYPES[result])
        else:
            exact = [number(int(i)) * number(int(j)) >> shift for i, j in zip(x, y, strict=True)]
            product = np.array([e & (1 << bits) - 1 for e in exact], DTYPES[bits])
        return product if z is None else product + z

    widths = (bits, bits, result) if adds else (bits, bits)
    return elementwise(builder, instruction, bits, scalar, vector, result, widths)


def _decode_minmax(instruction: ptx.Instruction, builder: Builder) -> Step:
    if is_float(instruction):
        return decode(instruction, builder)
    modifiers = Modifiers(instruction)
    letter, bits = modifiers.type()
    modifiers.done()
    choose = min if instruction.opcode == "min" else max
    ufunc = np.minimum if instruction.opcode == "min" else np.maximum
    if letter != "s":
        return elementwise(builder, instruction, bits, choose, ufunc)
    view = SIGNED[bits]
    return elementwise(
        builder,
        instruction,
        bits,
        lambda x, y: choose(signed(x, bits), signed(y, bits)),
        lambda x, y: ufunc(x.view(view), y.view(view)).view(DTYPES[bits]),
    )


def _decode_sign(instruction: ptx.Instruction, builder: Builder) -> Step:
    """Decode neg and abs."""
    if instruction.modifiers[-1][0] != "s":
        return decode(instruction, builder)
    modifiers = Modifiers(instruction)
    _, bits = modifiers.type()
    modifiers.done()
    if instruction.opcode == "neg":
        return elementwise(builder, instruction, bits, operator.neg, operator.neg)
    view, dtype = SIGNED[bits], DTYPES[bits]
    return elementwise(
        builder,
        instruction,
        bits,
        lambda x: abs(signed(x, bits)),
        lambda x: np.abs(x.view(view)).view(dtype),
    )


def _decode_divide(instruction: ptx.Instruction, builder: Builder) -> Step:
    """Decode div and rem, which truncate towards zero."""
    if is_float(instruction):
        return decode(instruction, builder)
    modifiers = Modifiers(instruction)
    letter, bits = modifiers.type()
    modifiers.done()
    remainder = instruction.opcode == "rem"

    def scalar(x: int, y: int) -> int:
        if letter == "s":
            x, y = signed(x, bits), signed(y, bits)
        if not y:
            return -1 if not remainder else x  # as hardware does; the ISA leaves it open
        quotient = abs(x) // abs(y) * (1 if (x < 0) == (y < 0) else -1)
        return x - quotient * y if remainder else quotient

    def vector(x: np.ndarray, y: np.ndarray) -> np.ndarray:
        pairs = zip(x.tolist(), y.tolist(), strict=True)
        return np.array([scalar(i, j) & (1 << bits) - 1 for i, j in pairs], DTYPES[bits])

    return elementwise(builder, instruction, bits, scalar, vector)


DECODERS: Mapping[str, Decoder] = {
    "add": _decode_add,
    "sub": _decode_add,
    "mul": _decode_mul,
    "mad": _decode_mul,
    "min": _decode_minmax,
    "max": _decode_minmax,
    "neg": _decode_sign,
    "abs": _decode_sign,
    "div": _decode_divide,
    "rem": _decode_divide,
}
