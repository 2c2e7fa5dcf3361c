"""Floating point and conversions (PTX ISA: Floating Point Instructions; cvt).

numpy rounds float32 and float64 operations to nearest even, denormals kept: .rn without .ftz. A
fused multiply-add of float32 goes through float64: the product of two float32 is exact there, and
the sum, rounded to odd, rounds to float32 as if it were exact.
"""

import math
from collections.abc import Callable, Mapping
from fractions import Fraction
from typing import Any

import numpy as np

from nvfp4.backends.cutedsl.emulator import ptx
from nvfp4.backends.cutedsl.emulator.lanes import DTYPES, FLOATS, SIGNED, spread
from nvfp4.backends.cutedsl.emulator.program import Decoder, Modifiers, Program, Step


def fma32(a: np.ndarray, b: np.ndarray, c: np.ndarray) -> np.ndarray:
    """a * b + c rounded once to float32."""
    product = a.astype(np.float64) * b.astype(np.float64)
    wide = c.astype(np.float64)
    total = product + wide
    # The error of the sum (Knuth's two-sum), to round to odd: then rounding to float32 is exact.
    part = total - product
    error = (product - (total - part)) + (wide - part)
    raw = total.view(np.int64)
    inexact = (error != 0) & np.isfinite(total) & (raw & 1 == 0)
    towards = np.where((error > 0) == (total > 0), 1, -1)
    return np.where(inexact, raw + towards, raw).view(np.float64).astype(np.float32)


def _fma64(a: np.ndarray, b: np.ndarray, c: np.ndarray) -> np.ndarray:
    """The same for float64, by Python's fractions."""
    result = a * b + c
    for i in np.flatnonzero(np.isfinite(a) & np.isfinite(b) & np.isfinite(c)):
        exact = Fraction(a[i]) * Fraction(b[i]) + Fraction(c[i])
        if exact:
            result[i] = float(exact) if abs(exact) < _HUGE else math.copysign(math.inf, exact)
    return result


_HUGE = 2**1024 - 2**970
"""From here on a number rounds to infinity."""


def _chosen(ufunc: Callable[..., np.ndarray], low: bool) -> Callable[..., np.ndarray]:
    """min and max: a number rather than a NaN, and -0 is below +0."""

    def choose(a: np.ndarray, b: np.ndarray) -> np.ndarray:
        numbers = np.where(a == b, np.where(np.signbit(a) == low, a, b), ufunc(a, b))
        either = np.where(np.isnan(a), b, np.where(np.isnan(b), a, numbers))
        return np.where(np.isnan(either), a.dtype.type(np.nan), either)

    return choose


def _nan_if_either(choose: Callable[..., np.ndarray]) -> Callable[..., np.ndarray]:
    """min.NaN and max.NaN: the canonical NaN if an operand is one."""

    def canonical(a: np.ndarray, b: np.ndarray) -> np.ndarray:
        nan = np.uint32(0x7FFFFFFF).view(np.float32)
        return np.where(np.isnan(a) | np.isnan(b), nan, choose(a, b))

    return canonical


def _flushed(x: np.ndarray) -> np.ndarray:
    """.ftz: denormals are zeros of their sign."""
    return np.where(np.abs(x) < np.finfo(np.float32).tiny, np.copysign(np.float32(0), x), x)


def to_bfloat16(bits: np.ndarray) -> np.ndarray:
    """float32 patterns to bfloat16 ones, to nearest even; any NaN becomes 0x7FFF."""
    rounded = (bits + np.uint32(0x7FFF) + (bits >> np.uint32(16) & np.uint32(1))) >> np.uint32(16)
    nan = bits & np.uint32(0x7FFFFFFF) > np.uint32(0x7F800000)
    return np.where(nan, np.uint32(0x7FFF), rounded).astype(np.uint16)


def _to_float16(bits: np.ndarray) -> np.ndarray:
    half = bits.view(np.float32).astype(np.float16)
    return np.where(np.isnan(half), np.uint16(0x7FFF), half.view(np.uint16))


def _nearest(table: np.ndarray, magnitudes: np.ndarray) -> np.ndarray:
    """Codes of the nearest values of an ascending table, ties to the even code, saturating."""
    middle = (table[:-1] + table[1:]) / 2
    below = np.searchsorted(middle, magnitudes, side="left")
    tie = (below < len(middle)) & (middle[np.minimum(below, len(middle) - 1)] == magnitudes)
    return below + (tie & (below % 2 == 1))


_E2M1 = np.array([0, 0.5, 1, 1.5, 2, 3, 4, 6])
_E4M3 = np.array(
    [m / 8 * 2.0**-6 for m in range(8)]
    + [(1 + m / 8) * 2.0 ** (e - 7) for e in range(1, 16) for m in range(8)][:-1]
)


def _to_e4m3(bits: np.ndarray) -> np.ndarray:
    value = bits.view(np.float32).astype(np.float64)
    code = _nearest(_E4M3, np.abs(np.nan_to_num(value)))
    code = np.where(np.isnan(value), 0x7F, code | np.signbit(value).astype(np.int64) << 7)
    return code.astype(np.uint8)


def _to_e2m1(bits: np.ndarray) -> np.ndarray:
    value = bits.view(np.float32).astype(np.float64)
    code = _nearest(_E2M1, np.abs(np.nan_to_num(value, nan=6.0)))
    sign = np.signbit(np.where(np.isnan(value), 0.0, value)).astype(np.int64)
    return (code | sign << 3).astype(np.uint8)


_PAIRS: Mapping[str, tuple[Callable[[np.ndarray], np.ndarray], int]] = {
    "bf16x2": (to_bfloat16, 16),
    "f16x2": (_to_float16, 16),
    "e4m3x2": (_to_e4m3, 8),
    "e2m1x2": (_to_e2m1, 4),
}


def _arithmetic(name: str, values: list[np.ndarray]) -> np.ndarray:
    with np.errstate(all="ignore"):
        if name == "fma":
            a, b, c = values
            return fma32(a, b, c) if a.dtype == np.float32 else _fma64(a, b, c)
        return _OPERATIONS[name](*values)


_OPERATIONS: Mapping[str, Callable[..., np.ndarray]] = {
    "add": np.add,
    "sub": np.subtract,
    "mul": np.multiply,
    "div": np.divide,
    "min": _chosen(np.minimum, low=True),
    "max": _chosen(np.maximum, low=False),
    "min.NaN": _nan_if_either(_chosen(np.minimum, low=True)),
    "max.NaN": _nan_if_either(_chosen(np.maximum, low=False)),
    "neg": np.negative,
    "abs": np.abs,
    "rcp": lambda x: np.divide(x.dtype.type(1), x),
    "sqrt": np.sqrt,
    "rsqrt": lambda x: (1 / np.sqrt(x.astype(np.float64))).astype(x.dtype),
    "ex2": lambda x: np.exp2(x.astype(np.float64)).astype(x.dtype),
    "lg2": lambda x: np.log2(x.astype(np.float64)).astype(x.dtype),
    "tanh": lambda x: np.tanh(x.astype(np.float64)).astype(x.dtype),
}
_SOURCES = {
    "fma": 3,
    **dict.fromkeys(("add", "sub", "mul", "div", "min", "max", "min.NaN", "max.NaN"), 2),
}
"""How many operands an operation has, where not one."""
_APPROXIMATE = ("rcp", "sqrt", "rsqrt", "ex2", "lg2", "tanh", "div")
"""Their .approx forms have no exact results; these are the correctly rounded ones."""


def decode(instruction: ptx.Instruction, program: Program) -> Step:
    """An arithmetic instruction on f32, f64 or packed f32x2."""
    modifiers = Modifiers(instruction)
    name = instruction.opcode
    kind = modifiers.need("f32", "f64", "f32x2")
    if not modifiers.take("rn") and name in _APPROXIMATE:
        modifiers.take("approx")
    ftz = bool(modifiers.take("ftz"))
    if name in ("min", "max") and kind == "f32" and modifiers.take("NaN"):
        name += ".NaN"
    modifiers.done()
    flushes = ftz and name == "mul" and kind != "f64"
    if ftz and not flushes and name not in _APPROXIMATE:
        raise instruction.unsupported("flushing denormals is not known")
    bits = 64 if kind in ("f64", "f32x2") else 32
    dtype = np.float64 if kind == "f64" else np.float32
    into, *operands = instruction.operands
    if len(operands) != _SOURCES.get(name, 1):
        raise ValueError(f"{len(operands)} operands behind the result")
    put = program.put(into, bits)
    slots = [program.source(operand, bits) for operand in operands]

    def result(words: list[np.ndarray]) -> np.ndarray:
        floats = [word.view(dtype) for word in words]
        if flushes:
            return _flushed(_arithmetic(name, [_flushed(f) for f in floats])).view(DTYPES[bits])
        return _arithmetic(name, floats).view(DTYPES[bits])

    def step(warp: Any) -> None:
        values = [warp.registers[slot] for slot in slots]
        if all(v.__class__ is int for v in values):
            put(warp, int(result([np.array([v], DTYPES[bits]) for v in values])[0]))
        else:
            put(warp, result([np.ascontiguousarray(spread(v, bits)) for v in values]))

    return step


def _decode_cvt(instruction: ptx.Instruction, program: Program) -> Step:
    names = list(instruction.modifiers)
    if names[-1] == "e4m3x2":
        return _decode_cvt_from_e4m3(instruction, program)
    if len(instruction.operands) == 3 and names[-1] == "f32":
        return _decode_cvt_pair(instruction, program)
    modifiers = Modifiers(instruction)
    source_kind, source_bits = _kind(names[-1], instruction)
    kind, bits = _kind(names[-2], instruction)
    for _ in range(2):
        modifiers.take(*names[-2:])
    rounding = modifiers.take("rn", "rz", "rm", "rp", "rni", "rzi", "rmi", "rpi")
    saturates = bool(modifiers.take("sat"))
    modifiers.done()
    put = program.put(instruction.operands[0], bits)
    slot = program.source(instruction.operands[1], source_bits)
    width = program.bits[program.result(instruction.operands[0], bits)]
    if source_kind in "ub" and kind in "usb" and not saturates:
        # to a wider type: zero-extended; to a narrower: truncated, and then extended as its own
        keep = min(bits, source_bits)
        if kind != "s" or bits > source_bits:
            return _truncate(put, slot, keep, width)
    if "f" not in (source_kind[0], kind[0]):
        return _convert_integers(put, slot, source_kind, source_bits, kind, bits, width, saturates)
    return _convert_floats(
        instruction, put, slot, (source_kind, source_bits), (kind, bits), rounding, saturates
    )


def _kind(name: str, instruction: ptx.Instruction) -> tuple[str, int]:
    if name == "bf16":
        return "fb", 16
    if name[:1] in tuple("usfb") and name[1:].isdigit():
        return name[0], int(name[1:])
    raise instruction.unsupported(f"the type .{name} is not known")


def _truncate(put: Any, slot: int, keep: int, width: int) -> Step:
    mask, dtype, narrow = (1 << keep) - 1, DTYPES[width], DTYPES[keep]

    def step(warp: Any) -> None:
        value = warp.registers[slot]
        if value.__class__ is int:
            put(warp, value & mask)
        else:
            put(warp, value.astype(narrow).astype(dtype))

    return step


def _convert_integers(
    put: Any, slot: int, source: str, source_bits: int, kind: str, bits: int, width: int, sat: bool
) -> Step:
    from_dtype = (SIGNED if source == "s" else DTYPES)[source_bits]
    to_dtype = (SIGNED if kind == "s" else DTYPES)[bits]
    wide = SIGNED[width] if kind == "s" else DTYPES[width]
    low, high = int(np.iinfo(to_dtype).min), int(np.iinfo(to_dtype).max)

    def convert(value: np.ndarray) -> np.ndarray:
        value = value.view(from_dtype)
        if sat:
            top = min(high, int(np.iinfo(from_dtype).max))
            value = np.clip(value, max(low, int(np.iinfo(from_dtype).min)), top)
        return value.astype(to_dtype).astype(wide).view(DTYPES[width])

    return _apply(put, slot, source_bits, convert)


def _apply(put: Any, slot: int, bits: int, convert: Callable[[np.ndarray], np.ndarray]) -> Step:
    def step(warp: Any) -> None:
        value = warp.registers[slot]
        if value.__class__ is int:
            put(warp, int(convert(np.array([value & (1 << bits) - 1], DTYPES[bits]))[0]))
        else:
            put(warp, convert(np.ascontiguousarray(spread(value, bits))))

    return step


def _convert_floats(
    instruction: ptx.Instruction,
    put: Any,
    slot: int,
    source: tuple[str, int],
    to: tuple[str, int],
    rounding: str,
    saturates: bool,
) -> Step:
    kind, bits = to

    def value_of(raw: np.ndarray) -> np.ndarray:
        if source[0] == "fb":
            return (raw.astype(np.uint32) << np.uint32(16)).view(np.float32)
        return raw.view({"f": FLOATS, "s": SIGNED}.get(source[0], DTYPES)[source[1]])

    integers = {"rni": np.rint, "rzi": np.trunc, "rmi": np.floor, "rpi": np.ceil}
    narrowing = kind[0] == "f" and (source[0][0] != "f" or source[1] > bits)
    if narrowing and rounding != "rn" or saturates and kind[0] == "f":
        raise instruction.unsupported("only with .rn and without .sat")
    if kind == "fb" and source != ("f", 32):
        raise instruction.unsupported("to bf16 from f32 only")

    def convert(raw: np.ndarray) -> np.ndarray:
        with np.errstate(all="ignore"):
            if kind == "fb":
                return to_bfloat16(raw)
            value = value_of(raw)
            if kind == "f":
                if rounding in integers:
                    value = integers[rounding](value)
                return value.astype(FLOATS[bits]).view(DTYPES[bits])
            info = np.iinfo((SIGNED if kind == "s" else DTYPES)[bits])
            whole = integers[rounding or "rzi"](value.astype(np.float64))
            nan, over = np.isnan(whole), whole >= float(info.max)
            bounded = np.where(nan | over, 0.0, np.maximum(whole, float(info.min)))
            result = np.where(over, info.dtype.type(info.max), bounded.astype(info.dtype))
            wide = bits == 64 or source[1] == 64
            nothing = DTYPES[bits](1 << bits - 1 if wide else 0)
            return np.where(nan, nothing, result.view(DTYPES[bits]))

    return _apply(put, slot, source[1], convert)


_E4M3_AS_FLOAT16 = np.concatenate([_E4M3, [np.nan], -_E4M3, [np.nan]]).astype(np.float16)
"""Each code's value, which float16 holds exactly."""


def _decode_cvt_from_e4m3(instruction: ptx.Instruction, program: Program) -> Step:
    """cvt.rn.f16x2.e4m3x2: two codes to two float16, in the same order."""
    modifiers = Modifiers(instruction, "e4m3x2")
    modifiers.need("f16x2")
    modifiers.need("rn")
    modifiers.done()
    into, source = instruction.operands
    put, slot = program.put(into, 32), program.source(source, 16)
    values = _E4M3_AS_FLOAT16.view(np.uint16).astype(np.uint32)
    values[[0x7F, 0xFF]] = 0x7FFF  # the canonical NaN

    def convert(codes: np.ndarray) -> np.ndarray:
        return values[codes & 0xFF] | values[codes >> 8] << np.uint32(16)

    return _apply(put, slot, 16, convert)


def _decode_cvt_pair(instruction: ptx.Instruction, program: Program) -> Step:
    """cvt.rn.<pair>.f32 d, a, b: a goes to the upper half of d, b to the lower."""
    modifiers = Modifiers(instruction, "f32")
    modifiers.need("rn")
    kind = modifiers.need(*_PAIRS)
    if kind in ("e4m3x2", "e2m1x2"):
        modifiers.need("satfinite")
    modifiers.done()
    convert, bits = _PAIRS[kind]
    into, upper, lower = instruction.operands
    put = program.put(into, 2 * bits if bits > 4 else 8)
    width = program.bits[program.result(into, 2 * bits if bits > 4 else 8)]
    slots = program.source(upper, 32), program.source(lower, 32)
    dtype = DTYPES[width]

    def step(warp: Any) -> None:
        high, low = warp.registers[slots[0]], warp.registers[slots[1]]
        both = np.empty((2, 32), np.uint32)
        both[0], both[1] = high, low
        with np.errstate(all="ignore"):
            codes = convert(both.ravel()).astype(dtype)
        packed = codes[:32] << dtype(bits) | codes[32:]
        uniform = high.__class__ is int and low.__class__ is int
        put(warp, int(packed[0]) if uniform else packed)

    return step


DECODERS: Mapping[str, Decoder] = {
    "cvt": _decode_cvt,
    **{name: decode for name in ("fma", "rcp", "sqrt", "rsqrt", "ex2", "lg2", "tanh")},
}
