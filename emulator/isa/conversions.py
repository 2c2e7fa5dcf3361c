"""Conversions (PTX ISA: cvt); floats round to nearest, ties to even."""

from collections.abc import Callable, Mapping
from typing import Any

import numpy as np

from nvfp4.emulator import ptx
from nvfp4.emulator.isa.builder import Builder, Decoder
from nvfp4.emulator.isa.modifiers import Modifiers
from nvfp4.emulator.lanes import DTYPES, FLOATS, SIGNED, spread
from nvfp4.emulator.machine.program import Step


def to_bfloat16(bits: np.ndarray) -> np.ndarray:
    """Round float32 patterns to bfloat16 patterns, ties to even; any NaN becomes 0x7FFF."""
    rounded = (bits + np.uint32(0x7FFF) + (bits >> np.uint32(16) & np.uint32(1))) >> np.uint32(16)
    nan = bits & np.uint32(0x7FFFFFFF) > np.uint32(0x7F800000)
    return np.where(nan, np.uint32(0x7FFF), rounded).astype(np.uint16)


def _to_float16(bits: np.ndarray) -> np.ndarray:
    return _canonical(bits.view(np.float32).astype(np.float16))


def _canonical(half: np.ndarray) -> np.ndarray:
    """Give the patterns of float16; any NaN becomes 0x7FFF."""
    return np.where(np.isnan(half), np.uint16(0x7FFF), half.view(np.uint16))


def _nearest(table: np.ndarray, magnitudes: np.ndarray) -> np.ndarray:
    """Give the codes of the nearest values in an ascending table: ties to even, saturating."""
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


def _decode_cvt(instruction: ptx.Instruction, builder: Builder) -> Step:
    names = list(instruction.modifiers)
    if names[-1] == "e4m3x2":
        return _decode_cvt_from_e4m3(instruction, builder)
    if len(instruction.operands) == 3 and names[-1] == "f32":
        return _decode_cvt_pair(instruction, builder)
    modifiers = Modifiers(instruction)
    source_kind, source_bits = _kind(names[-1], instruction)
    kind, bits = _kind(names[-2], instruction)
    for _ in range(2):
        modifiers.take(*names[-2:])
    rounding = modifiers.take("rn", "rz", "rm", "rp", "rni", "rzi", "rmi", "rpi")
    saturates = bool(modifiers.take("sat"))
    modifiers.done()
    put = builder.put(instruction.operands[0], bits)
    slot = builder.source(instruction.operands[1], source_bits)
    width = builder.bits[builder.result(instruction.operands[0], bits)]
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
                if bits == 16 and source[1] > 16:
                    return _canonical(value.astype(np.float16))
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
"""The value of each E4M3 code, which float16 holds exactly."""


def _decode_cvt_from_e4m3(instruction: ptx.Instruction, builder: Builder) -> Step:
    """Decode cvt.rn.f16x2.e4m3x2: two codes become two float16, in order."""
    modifiers = Modifiers(instruction, "e4m3x2")
    modifiers.need("f16x2")
    modifiers.need("rn")
    modifiers.done()
    into, source = instruction.operands
    put, slot = builder.put(into, 32), builder.source(source, 16)
    values = _E4M3_AS_FLOAT16.view(np.uint16).astype(np.uint32)
    values[[0x7F, 0xFF]] = 0x7FFF  # the canonical NaN

    def convert(codes: np.ndarray) -> np.ndarray:
        return values[codes & 0xFF] | values[codes >> 8] << np.uint32(16)

    return _apply(put, slot, 16, convert)


def _decode_cvt_pair(instruction: ptx.Instruction, builder: Builder) -> Step:
    """Decode cvt.rn.<pair>.f32 d, a, b: a becomes the upper half of d, b the lower."""
    modifiers = Modifiers(instruction, "f32")
    modifiers.need("rn")
    kind = modifiers.need(*_PAIRS)
    if kind in ("e4m3x2", "e2m1x2"):
        modifiers.need("satfinite")
    modifiers.done()
    convert, bits = _PAIRS[kind]
    into, upper, lower = instruction.operands
    put = builder.put(into, 2 * bits if bits > 4 else 8)
    width = builder.bits[builder.result(into, 2 * bits if bits > 4 else 8)]
    slots = builder.source(upper, 32), builder.source(lower, 32)
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


DECODERS: Mapping[str, Decoder] = {"cvt": _decode_cvt}
