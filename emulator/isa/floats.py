"""Floating point (PTX ISA: Floating Point Instructions).

numpy rounds float32 and float64 operations to nearest even and keeps denormals, as .rn without .ftz
does. A fused multiply-add of float32 goes through float64. The product of two float32 is exact
there, and the sum is rounded to odd, so that it rounds to float32 as if it were exact.
"""

import math
from collections.abc import Callable, Mapping
from fractions import Fraction
from functools import reduce
from typing import Any

import numpy as np

from nvfp4.emulator import ptx
from nvfp4.emulator.isa import halves
from nvfp4.emulator.isa.builder import Builder, Decoder
from nvfp4.emulator.isa.modifiers import Modifiers
from nvfp4.emulator.lanes import DTYPES, spread
from nvfp4.emulator.machine.program import Step


def fma32(a: np.ndarray, b: np.ndarray, c: np.ndarray) -> np.ndarray:
    """Compute a * b + c, rounded once to float32."""
    product = a.astype(np.float64) * b.astype(np.float64)
    wide = c.astype(np.float64)
    total = product + wide
    # The error of the sum (Knuth's two-sum) says how to round it to odd.
    part = total - product
    error = (product - (total - part)) + (wide - part)
    raw = total.view(np.int64)
    inexact = (error != 0) & np.isfinite(total) & (raw & 1 == 0)
    towards = np.where((error > 0) == (total > 0), 1, -1)
    return np.where(inexact, raw + towards, raw).view(np.float64).astype(np.float32)


def _fma64(a: np.ndarray, b: np.ndarray, c: np.ndarray) -> np.ndarray:
    """Compute a * b + c, rounded once to float64, with Python's fractions."""
    result = a * b + c
    for i in np.flatnonzero(np.isfinite(a) & np.isfinite(b) & np.isfinite(c)):
        exact = Fraction(a[i]) * Fraction(b[i]) + Fraction(c[i])
        if exact:
            result[i] = float(exact) if abs(exact) < _HUGE else math.copysign(math.inf, exact)
    return result


_HUGE = 2**1024 - 2**970
"""The smallest number that rounds to infinity."""


def _chosen(ufunc: Callable[..., np.ndarray], low: bool) -> Callable[..., np.ndarray]:
    """Make a min or max that prefers a number to a NaN and has -0 below +0."""

    def choose(a: np.ndarray, b: np.ndarray) -> np.ndarray:
        numbers = np.where(a == b, np.where(np.signbit(a) == low, a, b), ufunc(a, b))
        either = np.where(np.isnan(a), b, np.where(np.isnan(b), a, numbers))
        return np.where(np.isnan(either), a.dtype.type(np.nan), either)

    return choose


def _nan_if_either(choose: Callable[..., np.ndarray]) -> Callable[..., np.ndarray]:
    """Make a min or max that gives the canonical NaN if an operand is a NaN."""

    def canonical(a: np.ndarray, b: np.ndarray) -> np.ndarray:
        nan = np.uint32(0x7FFFFFFF).view(np.float32)
        return np.where(np.isnan(a) | np.isnan(b), nan, choose(a, b))

    return canonical


def _flushed(x: np.ndarray) -> np.ndarray:
    """Replace denormals with zeros of their sign, as .ftz does."""
    return np.where(np.abs(x) < np.finfo(np.float32).tiny, np.copysign(np.float32(0), x), x)


def _arithmetic(name: str, values: list[np.ndarray]) -> np.ndarray:
    with np.errstate(all="ignore"):
        if name == "fma":
            a, b, c = values
            return fma32(a, b, c) if a.dtype == np.float32 else _fma64(a, b, c)
        if len(values) == 3:
            return reduce(_OPERATIONS[name], values)
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
"""The number of operands of an operation, where it is not one."""
_APPROXIMATE = ("rcp", "sqrt", "rsqrt", "ex2", "lg2", "tanh", "div")
"""Operations whose .approx and .full forms are inexact; here they are correctly rounded."""


def is_float(instruction: ptx.Instruction) -> bool:
    return instruction.modifiers[-1].startswith(("f", "bf"))


def decode(instruction: ptx.Instruction, builder: Builder) -> Step:
    """Decode an arithmetic instruction on floats; those of 16 bits go to halves.py."""
    if instruction.modifiers[-1] in halves.KINDS:
        return halves.decode(instruction, builder)
    modifiers = Modifiers(instruction)
    name = instruction.opcode
    kind = modifiers.need("f32", "f64", "f32x2")
    if not modifiers.take("rn") and name in _APPROXIMATE:
        modifiers.take("approx", "full")
    ftz = bool(modifiers.take("ftz"))
    if name in ("min", "max") and kind == "f32" and modifiers.take("NaN"):
        name += ".NaN"
    modifiers.done()
    if ftz and kind == "f64":
        raise instruction.unsupported("denormals of f64 are not flushed")
    bits = 64 if kind in ("f64", "f32x2") else 32
    dtype = np.float64 if kind == "f64" else np.float32
    into, *operands = instruction.operands
    three = name.startswith(("min", "max")) and kind == "f32" and len(operands) == 3
    if len(operands) != _SOURCES.get(name, 1) and not three:
        raise ValueError(f"{len(operands)} operands behind the result")
    put = builder.put(into, bits)
    slots = [builder.source(operand, bits) for operand in operands]

    def result(words: list[np.ndarray]) -> np.ndarray:
        floats = [word.view(dtype) for word in words]
        if ftz:
            return _flushed(_arithmetic(name, [_flushed(f) for f in floats])).view(DTYPES[bits])
        return _arithmetic(name, floats).view(DTYPES[bits])

    def step(warp: Any) -> None:
        values = [warp.registers[slot] for slot in slots]
        if all(v.__class__ is int for v in values):
            put(warp, int(result([np.array([v], DTYPES[bits]) for v in values])[0]))
        else:
            put(warp, result([np.ascontiguousarray(spread(v, bits)) for v in values]))

    return step


DECODERS: Mapping[str, Decoder] = {
    **{name: decode for name in ("fma", "rcp", "sqrt", "rsqrt", "ex2", "lg2", "tanh")},
}
