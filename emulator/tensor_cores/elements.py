"""The formats of the tensor cores' operands, as float64 (PTX ISA: Fundamental Types)."""

from collections.abc import Callable, Mapping

import numpy as np

_E2M1 = np.array([0, 0.5, 1, 1.5, 2, 3, 4, 6, -0.0, -0.5, -1, -1.5, -2, -3, -4, -6])


def _small_float(code: int, exponent_bits: int, mantissa_bits: int) -> float:
    """Decode a format with a sign bit, denormals and a bias of half the exponent's range."""
    mantissa = code & (1 << mantissa_bits) - 1
    exponent = code >> mantissa_bits & (1 << exponent_bits) - 1
    bias = (1 << exponent_bits - 1) - 1
    fraction = mantissa / (1 << mantissa_bits) + (exponent > 0)
    value = fraction * 2.0 ** (max(exponent, 1) - bias)
    return -value if code >> exponent_bits + mantissa_bits & 1 else value


_E4M3 = np.array([np.nan if c & 127 == 127 else _small_float(c, 4, 3) for c in range(256)])
_E5M2 = (np.arange(256, dtype=np.uint16) << np.uint16(8)).view(np.float16).astype(np.float64)
UE4M3 = np.abs(_E4M3)
"""The scale factors UE4M3: the sign bit is ignored, and the top code is a NaN."""
UE8M0 = np.array([2.0 ** (code - 127) for code in range(255)] + [float("nan")])
"""The scale factors UE8M0: powers of two, and a NaN."""


def _bfloat16(codes: np.ndarray) -> np.ndarray:
    return (codes.astype(np.uint32) << np.uint32(16)).view(np.float32).astype(np.float64)


def _tf32(codes: np.ndarray) -> np.ndarray:
    """Ignore the 13 low bits of a float32."""
    return (codes & np.uint32(0xFFFFE000)).view(np.float32).astype(np.float64)


DECODE: Mapping[str, tuple[int, Callable[[np.ndarray], np.ndarray]]] = {
    "f16": (16, lambda codes: codes.view(np.float16).astype(np.float64)),
    "bf16": (16, _bfloat16),
    "tf32": (32, _tf32),
    "e4m3": (8, lambda codes: _E4M3[codes]),
    "e5m2": (8, lambda codes: _E5M2[codes]),
    "e2m1": (4, lambda codes: _E2M1[codes]),
    "s8": (8, lambda codes: codes.view(np.int8).astype(np.float64)),
    "u8": (8, lambda codes: codes.astype(np.float64)),
}
"""Each type of an operand, with its bits and the values of its unsigned codes."""
