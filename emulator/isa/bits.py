"""Logic, shifts and bit fields (PTX ISA: Logic and Shift Instructions, and bfe to prmt)."""

import operator
from collections.abc import Mapping
from typing import Any

import numpy as np

from nvfp4.emulator import ptx
from nvfp4.emulator.isa.builder import Builder, Decoder
from nvfp4.emulator.isa.elementwise import Scalar, elementwise
from nvfp4.emulator.isa.modifiers import Modifiers
from nvfp4.emulator.lanes import ALL, DTYPES, SIGNED, signed
from nvfp4.emulator.machine.program import Step


def _decode_logic(instruction: ptx.Instruction, builder: Builder) -> Step:
    """Decode and, or and xor, also on predicates."""
    modifiers = Modifiers(instruction)
    letter, bits = modifiers.type()
    modifiers.done()
    function = {"and": operator.and_, "or": operator.or_, "xor": operator.xor}[instruction.opcode]
    if letter == "pred":
        return _predicates(instruction, builder, function)
    return elementwise(builder, instruction, bits, function, function)


def _predicates(instruction: ptx.Instruction, builder: Builder, function: Any) -> Step:
    put = builder.put(instruction.operands[0], 1)
    sources = [builder.predicate(o) for o in instruction.operands[1:]]

    def step(warp: Any) -> None:
        put(warp, function(*(warp.registers[slot] ^ flip for slot, flip in sources)))

    return step


def _decode_not(instruction: ptx.Instruction, builder: Builder) -> Step:
    modifiers = Modifiers(instruction)
    letter, bits = modifiers.type()
    modifiers.done()
    if letter == "pred":
        return _predicates(instruction, builder, lambda x: x ^ ALL)
    return elementwise(builder, instruction, bits, operator.invert, operator.invert)


def _decode_shift(instruction: ptx.Instruction, builder: Builder) -> Step:
    """Decode shl and shr; amounts above the width count as the width."""
    modifiers = Modifiers(instruction)
    letter, bits = modifiers.type()
    modifiers.done()
    left, dtype = instruction.opcode == "shl", DTYPES[bits]

    def scalar(value: int, by: int) -> int:
        by = min(by, bits)
        if left:
            return value << by
        return (signed(value, bits) if letter == "s" else value) >> by

    def vector(value: np.ndarray, by: np.ndarray) -> np.ndarray:
        far = by >= bits
        by = np.minimum(by, bits - 1).astype(dtype)
        if letter == "s":
            return (value.view(SIGNED[bits]) >> by.view(SIGNED[bits])).view(dtype)
        return np.where(far, dtype(0), value << by if left else value >> by)

    return elementwise(builder, instruction, bits, scalar, vector, 0, (bits, 32))


def _decode_prmt(instruction: ptx.Instruction, builder: Builder) -> Step:
    """Decode prmt: nibbles select bytes of b:a, and bit 3 of a nibble replicates the sign."""
    Modifiers(instruction, "b32").done()

    def scalar(a: int, b: int, selector: int) -> int:
        both, result = b << 32 | a, 0
        for i in range(4):
            nibble = selector >> 4 * i & 15
            byte = both >> 8 * (nibble & 7) & 255
            if nibble & 8:
                byte = 255 if byte & 128 else 0
            result |= byte << 8 * i
        return result

    def vector(a: np.ndarray, b: np.ndarray, selector: np.ndarray) -> np.ndarray:
        both = np.stack([a, b], 1).view(np.uint8)
        nibbles = selector[:, None] >> np.array([0, 4, 8, 12], np.uint32) & np.uint32(15)
        picked = np.take_along_axis(both, (nibbles & 7).astype(np.int64), 1)
        sign = np.where(picked & 128, 255, 0).astype(np.uint8)
        return np.where(nibbles & 8, sign, picked).astype(np.uint8).view(np.uint32)[:, 0]

    return elementwise(builder, instruction, 32, scalar, vector)


def _decode_funnel(instruction: ptx.Instruction, builder: Builder) -> Step:
    """Decode shf, which takes 32 bits out of b:a."""
    modifiers = Modifiers(instruction)
    left = modifiers.need("l", "r") == "l"
    wraps = modifiers.need("clamp", "wrap") == "wrap"
    modifiers.need("b32")
    modifiers.done()

    def scalar(a: int, b: int, c: int) -> int:
        by = c & 31 if wraps else min(c, 32)
        both = b << 32 | a
        return both >> (32 - by) if left else both >> by

    def vector(a: np.ndarray, b: np.ndarray, c: np.ndarray) -> np.ndarray:
        each = zip(a.tolist(), b.tolist(), c.tolist(), strict=True)
        return np.array([scalar(*values) & 0xFFFFFFFF for values in each], np.uint32)

    return elementwise(builder, instruction, 32, scalar, vector)


def _decode_lop3(instruction: ptx.Instruction, builder: Builder) -> Step:
    """Decode lop3: bit (a << 2 | b << 1 | c) of the table is the result."""
    Modifiers(instruction, "b32").done()
    *operands, table = instruction.operands
    if not isinstance(table, ptx.Immediate):
        raise instruction.unsupported("only with a constant table")
    terms = [(i >> 2 & 1, i >> 1 & 1, i & 1) for i in range(8) if int(table.value) >> i & 1]

    def function(a: Any, b: Any, c: Any) -> Any:
        result = a & 0
        for x, y, z in terms:
            result = result | (a if x else ~a) & (b if y else ~b) & (c if z else ~c)
        return result

    short = ptx.Instruction("lop3", (), tuple(operands), None, instruction.line, instruction.text)
    return elementwise(builder, short, 32, function, function)


def _decode_bitfield(instruction: ptx.Instruction, builder: Builder) -> Step:
    """Decode bfe and bfi, whose positions and lengths count modulo 256."""
    modifiers = Modifiers(instruction)
    letter, bits = modifiers.type()
    modifiers.done()

    def extract(a: int, position: int, length: int) -> int:
        position, length = position & 255, length & 255
        field = (signed(a, bits) if letter == "s" else a) >> position
        if not length:
            return 0
        if length >= bits or position + length >= bits:
            return field
        field &= (1 << length) - 1
        return signed(field, length) if letter == "s" else field

    def insert(a: int, b: int, position: int, length: int) -> int:
        position, length = position & 255, length & 255
        mask = ((1 << length) - 1) << position
        return b & ~mask | a << position & mask

    scalar: Scalar = extract if instruction.opcode == "bfe" else insert

    def vector(*values: np.ndarray) -> np.ndarray:
        each = zip(*(v.tolist() for v in values), strict=True)
        return np.array([scalar(*v) & (1 << bits) - 1 for v in each], DTYPES[bits])

    widths = (bits, 32, 32) if instruction.opcode == "bfe" else (bits, bits, 32, 32)
    return elementwise(builder, instruction, bits, scalar, vector, 0, widths)


def _decode_count(instruction: ptx.Instruction, builder: Builder) -> Step:
    """Decode popc, clz, brev and bfind."""
    modifiers = Modifiers(instruction)
    letter, bits = modifiers.type()
    modifiers.done()

    def highest(x: int) -> int:
        """Find the highest bit that differs from the sign."""
        return (~signed(x, bits) if letter == "s" and x >> bits - 1 else x).bit_length() - 1

    scalar: Scalar = {
        "popc": int.bit_count,
        "clz": lambda x: bits - x.bit_length(),
        "brev": lambda x: int(f"{x:0{bits}b}"[::-1], 2),
        "bfind": highest,
    }[instruction.opcode]
    result = bits if instruction.opcode == "brev" else 32

    def vector(x: np.ndarray) -> np.ndarray:
        return np.array([scalar(v) & (1 << result) - 1 for v in x.tolist()], DTYPES[result])

    return elementwise(builder, instruction, bits, scalar, vector, result, (bits,))


DECODERS: Mapping[str, Decoder] = {
    "and": _decode_logic,
    "or": _decode_logic,
    "xor": _decode_logic,
    "not": _decode_not,
    "shl": _decode_shift,
    "shr": _decode_shift,
    "prmt": _decode_prmt,
    "shf": _decode_funnel,
    "lop3": _decode_lop3,
    "bfe": _decode_bitfield,
    "bfi": _decode_bitfield,
    "popc": _decode_count,
    "clz": _decode_count,
    "brev": _decode_count,
    "bfind": _decode_count,
}
