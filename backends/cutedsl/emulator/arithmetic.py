"""Arithmetic, logic and moves between registers (PTX ISA: chapter Instruction Set).

Most values are the same in all lanes, and Python ints are quicker than numpy there; so every
operation has two forms.
"""

import operator
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np

from nvfp4.backends.cutedsl.emulator import ptx
from nvfp4.backends.cutedsl.emulator.lanes import (
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
from nvfp4.backends.cutedsl.emulator.program import Decoder, Modifiers, Program, Step
from nvfp4.backends.cutedsl.emulator.special import CLOCKS

Scalar = Callable[..., int]


def _elementwise(
    program: Program,
    instruction: ptx.Instruction,
    bits: int,
    scalar: Scalar | None,
    vector: Callable[..., np.ndarray],
    result_bits: int = 0,
    source_bits: tuple[int, ...] = (),
) -> Step:
    """result = f(sources). `scalar` takes and gives unsigned ints and need not wrap its result;
    `vector` takes arrays of the sources' bits and gives one of the result's.
    """
    result_bits = result_bits or bits
    into, *operands = instruction.operands
    if len(operands) != _SOURCES.get(instruction.opcode, 2):
        raise ValueError(f"{len(operands)} operands behind the result")
    widths = source_bits or (bits,) * len(operands)
    slots = [program.source(o, n) for o, n in zip(operands, widths, strict=True)]
    put = program.put(into, result_bits)
    wrap = (1 << result_bits) - 1
    # A register may be wider than the operation: then its upper bits do not count.
    narrow = [program.bits[s] > n for s, n in zip(slots, widths, strict=True)]
    if scalar is not None and len(slots) == 2 and not any(narrow):
        a, b = slots
        wide_a, wide_b = widths
        function = scalar

        def two(warp: Any) -> None:
            registers = warp.registers
            x, y = registers[a], registers[b]
            if x.__class__ is int and y.__class__ is int:
                put(warp, function(x, y) & wrap)
            else:
                put(warp, vector(_array(x, wide_a), _array(y, wide_b)))

        return two

    def step(warp: Any) -> None:
        values = [warp.registers[slot] for slot in slots]
        if scalar is not None and all(v.__class__ is int for v in values):
            if any(narrow):
                values = [v & ((1 << n) - 1) for v, n in zip(values, widths, strict=True)]
            put(warp, scalar(*values) & wrap)
        elif all(v.__class__ is int for v in values):  # no int form, but one lane is enough
            one = vector(*(np.array([v], DTYPES[n]) for v, n in zip(values, widths, strict=True)))
            put(warp, int(one[0]))
        else:
            put(warp, vector(*(_array(v, n) for v, n in zip(values, widths, strict=True))))

    return step


_SOURCES = {
    **dict.fromkeys(("mad", "prmt", "shf", "lop3", "bfe"), 3),
    **dict.fromkeys(("not", "neg", "abs", "popc", "clz", "brev", "bfind"), 1),
    "bfi": 4,
}  # fmt: skip
"""How many operands an instruction has behind its result, where not two."""


def _array(value: Any, bits: int) -> np.ndarray:
    return spread(value, bits)


def _plain(*, wrapping: str) -> Decoder:
    """Operations whose bits do not depend on the sign: add, sub, and, or, xor."""
    function: Any = getattr(operator, wrapping)

    def decode(instruction: ptx.Instruction, program: Program) -> Step:
        if instruction.modifiers[-1][0] == "f":
            return _decode_float(instruction, program)
        modifiers = Modifiers(instruction)
        letter, bits = modifiers.type()
        modifiers.done()
        if letter == "pred":
            return _predicates(instruction, program, function)
        return _elementwise(program, instruction, bits, function, function)

    return decode


def _predicates(instruction: ptx.Instruction, program: Program, function: Any) -> Step:
    put = program.put(instruction.operands[0], 1)
    sources = [program.predicate(o) for o in instruction.operands[1:]]

    def step(warp: Any) -> None:
        put(warp, function(*(warp.registers[slot] ^ flip for slot, flip in sources)))

    return step


def _decode_not(instruction: ptx.Instruction, program: Program) -> Step:
    modifiers = Modifiers(instruction)
    letter, bits = modifiers.type()
    modifiers.done()
    if letter == "pred":
        return _predicates(instruction, program, lambda x: x ^ ALL)
    return _elementwise(program, instruction, bits, operator.invert, operator.invert)


def _decode_shift(instruction: ptx.Instruction, program: Program) -> Step:
    """Shift amounts above the width count as the width."""
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

    return _elementwise(program, instruction, bits, scalar, vector, 0, (bits, 32))


def _decode_mul(instruction: ptx.Instruction, program: Program) -> Step:
    """mul and mad: .lo, .hi and .wide."""
    if instruction.modifiers[-1] in ("f16", "f32", "f64", "f32x2", "f16x2", "bf16", "bf16x2"):
        return _decode_float(instruction, program)
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
    return _elementwise(program, instruction, bits, scalar, vector, result, widths)


def _decode_minmax(instruction: ptx.Instruction, program: Program) -> Step:
    if instruction.modifiers[-1][0] == "f":
        return _decode_float(instruction, program)
    modifiers = Modifiers(instruction)
    letter, bits = modifiers.type()
    modifiers.done()
    choose = min if instruction.opcode == "min" else max
    ufunc = np.minimum if instruction.opcode == "min" else np.maximum
    if letter != "s":
        return _elementwise(program, instruction, bits, choose, ufunc)
    view = SIGNED[bits]
    return _elementwise(
        program,
        instruction,
        bits,
        lambda x, y: choose(signed(x, bits), signed(y, bits)),
        lambda x, y: ufunc(x.view(view), y.view(view)).view(DTYPES[bits]),
    )


def _decode_sign(instruction: ptx.Instruction, program: Program) -> Step:
    """neg and abs."""
    if instruction.modifiers[-1][0] != "s":
        return _decode_float(instruction, program)
    modifiers = Modifiers(instruction)
    _, bits = modifiers.type()
    modifiers.done()
    if instruction.opcode == "neg":
        return _elementwise(program, instruction, bits, operator.neg, operator.neg)
    view, dtype = SIGNED[bits], DTYPES[bits]
    return _elementwise(
        program,
        instruction,
        bits,
        lambda x: abs(signed(x, bits)),
        lambda x: np.abs(x.view(view)).view(dtype),
    )


def _decode_divide(instruction: ptx.Instruction, program: Program) -> Step:
    """div and rem: integers truncate towards zero."""
    if instruction.modifiers[-1][0] == "f":
        return _decode_float(instruction, program)
    modifiers = Modifiers(instruction)
    letter, bits = modifiers.type()
    modifiers.done()
    remainder = instruction.opcode == "rem"

    def scalar(x: int, y: int) -> int:
        if letter == "s":
            x, y = signed(x, bits), signed(y, bits)
        if not y:
            return -1 if not remainder else x  # what the machine does; the ISA leaves it open
        quotient = abs(x) // abs(y) * (1 if (x < 0) == (y < 0) else -1)
        return x - quotient * y if remainder else quotient

    def vector(x: np.ndarray, y: np.ndarray) -> np.ndarray:
        pairs = zip(x.tolist(), y.tolist(), strict=True)
        return np.array([scalar(i, j) & (1 << bits) - 1 for i, j in pairs], DTYPES[bits])

    return _elementwise(program, instruction, bits, scalar, vector)


def _decode_mov(instruction: ptx.Instruction, program: Program) -> Step:
    """mov, and its packing and unpacking of vectors."""
    modifiers = Modifiers(instruction)
    letter, bits = modifiers.type()
    modifiers.done()
    into, source = instruction.operands
    if isinstance(source, ptx.Vector):
        return _pack(program, into, source, bits)
    if isinstance(into, ptx.Vector):
        return _unpack(program, into, source, bits)
    if isinstance(source, ptx.Symbol) and source.name in CLOCKS:
        put = program.put(into, bits)
        return lambda warp: put(warp, warp.machine.time & (1 << bits) - 1)
    put, slot = program.put(into, bits), program.source(source, bits)
    return lambda warp: put(warp, _defined(warp.registers[slot]))


def _defined(value: Any) -> Any:
    if value is None or value.__class__ is Loading:
        raise TypeError("a register without a value")
    return value


def _pack(program: Program, into: ptx.Operand, source: ptx.Vector, bits: int) -> Step:
    each = bits // len(source.items)
    slots = [program.source(item, each) for item in source.items]
    put = program.put(into, bits)
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


def _unpack(program: Program, into: ptx.Vector, source: ptx.Operand, bits: int) -> Step:
    each = bits // len(into.items)
    slot = program.source(source, bits)
    puts = [
        (i, program.put(item, each))
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


def _decode_selp(instruction: ptx.Instruction, program: Program) -> Step:
    modifiers = Modifiers(instruction)
    _, bits = modifiers.type()
    modifiers.done()
    into, a, b, p = instruction.operands
    put = program.put(into, bits)
    yes, no = program.source(a, bits), program.source(b, bits)
    predicate, flip = program.predicate(p)

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


def _decode_setp(instruction: ptx.Instruction, program: Program) -> Step:
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
    put = program.put(first, 1)
    put_other = program.put(second, 1) if second is not None else None
    x_slot, y_slot = program.source(a, bits), program.source(b, bits)
    other, flip = program.predicate(rest[0]) if combine else (0, 0)
    wrap, sign = (1 << bits) - 1, letter == "s"
    kinds = {"s": SIGNED, "f": FLOATS}.get(letter, DTYPES)
    narrow = program.bits[x_slot] > bits or program.bits[y_slot] > bits

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


def _decode_prmt(instruction: ptx.Instruction, program: Program) -> Step:
    """Bytes picked from b:a by selector nibbles; bit 3 of a nibble replicates the sign."""
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

    return _elementwise(program, instruction, 32, scalar, vector)


def _decode_funnel(instruction: ptx.Instruction, program: Program) -> Step:
    """shf: a window of 32 bits on b:a."""
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

    return _elementwise(program, instruction, 32, scalar, vector)


def _decode_lop3(instruction: ptx.Instruction, program: Program) -> Step:
    """The truth table's bit (a << 2 | b << 1 | c) is the result."""
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
    return _elementwise(program, short, 32, function, function)


def _decode_bitfield(instruction: ptx.Instruction, program: Program) -> Step:
    """bfe and bfi; positions and lengths are taken modulo 256."""
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
    return _elementwise(program, instruction, bits, scalar, vector, 0, widths)


def _decode_count(instruction: ptx.Instruction, program: Program) -> Step:
    """popc, clz, brev, bfind."""
    modifiers = Modifiers(instruction)
    letter, bits = modifiers.type()
    modifiers.done()

    def highest(x: int) -> int:
        """The highest bit that is not the sign."""
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

    return _elementwise(program, instruction, bits, scalar, vector, result, (bits,))


def _decode_float(instruction: ptx.Instruction, program: Program) -> Step:
    from nvfp4.backends.cutedsl.emulator.floats import decode

    return decode(instruction, program)


DECODERS: Mapping[str, Decoder] = {
    "add": _plain(wrapping="add"),
    "sub": _plain(wrapping="sub"),
    "and": _plain(wrapping="and_"),
    "or": _plain(wrapping="or_"),
    "xor": _plain(wrapping="xor"),
    "not": _decode_not,
    "shl": _decode_shift,
    "shr": _decode_shift,
    "mul": _decode_mul,
    "mad": _decode_mul,
    "min": _decode_minmax,
    "max": _decode_minmax,
    "neg": _decode_sign,
    "abs": _decode_sign,
    "div": _decode_divide,
    "rem": _decode_divide,
    "mov": _decode_mov,
    "selp": _decode_selp,
    "setp": _decode_setp,
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
