"""Arithmetic and comparisons of float16 and bfloat16, single and packed in pairs (PTX ISA).

An operation is computed in float64 and rounded once, to nearest even. Sums and products of such
numbers are exact in float64. A fused multiply-add may not be: it is rounded to odd first, so that
it rounds as if it were exact. Denormals are kept, and a NaN result is 0x7FFF.
"""

from collections.abc import Callable, Mapping
from typing import Any

import numpy as np

from nvfp4.emulator import ptx
from nvfp4.emulator.isa.builder import Builder
from nvfp4.emulator.isa.modifiers import Modifiers
from nvfp4.emulator.lanes import lane_set, spread
from nvfp4.emulator.machine.program import Step

KINDS = ("f16", "bf16", "f16x2", "bf16x2")


def widened(words: np.ndarray, kind: str) -> np.ndarray:
    """Give 16-bit patterns of f16 or bf16 as float64."""
    if kind.startswith("bf16"):
        return (words.astype(np.uint32) << np.uint32(16)).view(np.float32).astype(np.float64)
    return words.view(np.float16).astype(np.float64)


def rounded(values: np.ndarray, kind: str) -> np.ndarray:
    """Round float64 once to f16 or bf16, ties to even, and give the 16-bit patterns."""
    if kind.startswith("bf16"):
        _, exponent = np.frexp(np.where(np.isfinite(values), values, 0.0))
        unit = np.ldexp(1.0, np.maximum(exponent, -125) - 8)  # the distance of neighbours
        exact = np.where(np.isfinite(values), np.rint(values / unit) * unit, values)
        words = (exact.astype(np.float32).view(np.uint32) >> np.uint32(16)).astype(np.uint16)
    else:
        words = values.astype(np.float16).view(np.uint16)
    return np.where(np.isnan(values), np.uint16(0x7FFF), words)


def _fma(a: np.ndarray, b: np.ndarray, c: np.ndarray) -> np.ndarray:
    """Compute a * b + c in float64, rounded to odd."""
    product = a * b
    total = product + c
    part = total - product
    error = (product - (total - part)) + (c - part)  # of the sum (Knuth's two-sum)
    raw = total.view(np.int64)
    inexact = (error != 0) & np.isfinite(total) & (raw & 1 == 0)
    towards = np.where((error > 0) == (total > 0), 1, -1)
    return np.where(inexact, raw + towards, raw).view(np.float64)


def _chosen(low: bool, propagates: bool) -> Callable[[np.ndarray, np.ndarray], np.ndarray]:
    """Make min or max, which has -0 below +0 and prefers a number to a NaN unless it propagates."""

    def choose(a: np.ndarray, b: np.ndarray) -> np.ndarray:
        first = np.where(a == b, np.signbit(a) == low, (a < b) == low)
        numbers = np.where(first, a, b)
        if propagates:
            return np.where(np.isnan(a) | np.isnan(b), np.nan, numbers)
        return np.where(np.isnan(a), b, np.where(np.isnan(b), a, numbers))

    return choose


_OPERATIONS: Mapping[str, tuple[Callable[..., np.ndarray], int]] = {
    "add": (np.add, 2),
    "sub": (np.subtract, 2),
    "mul": (np.multiply, 2),
    "fma": (_fma, 3),
    "min": (_chosen(low=True, propagates=False), 2),
    "max": (_chosen(low=False, propagates=False), 2),
    "min.NaN": (_chosen(low=True, propagates=True), 2),
    "max.NaN": (_chosen(low=False, propagates=True), 2),
}
"""Each operation on float64, and the number of its operands."""
_SIGNS: Mapping[str, Callable[[np.ndarray], np.ndarray]] = {
    "neg": lambda words: words ^ np.uint16(0x8000),
    "abs": lambda words: words & np.uint16(0x7FFF),
}
"""The operations on the sign bit, which keep a NaN's other bits."""


def decode(instruction: ptx.Instruction, builder: Builder) -> Step:
    """Decode add, sub, mul, fma, min, max, neg and abs of f16, bf16 and their pairs."""
    modifiers = Modifiers(instruction)
    kind = modifiers.need(*KINDS)
    name = instruction.opcode
    if name not in _OPERATIONS and name not in _SIGNS:
        raise instruction.unsupported(f"{name} of {kind} is not known")
    modifiers.take("rn")
    if name in ("min", "max") and modifiers.take("NaN"):
        name += ".NaN"
    relu = name == "fma" and bool(modifiers.take("relu"))
    modifiers.done()
    into, *operands = instruction.operands
    bits = 32 if kind.endswith("x2") else 16
    function, count = _OPERATIONS.get(name, (None, 1))
    if len(operands) != count:
        raise ValueError(f"{len(operands)} operands behind the result")
    put = builder.put(into, bits)
    slots = [builder.source(operand, bits) for operand in operands]

    def result(words: list[np.ndarray]) -> np.ndarray:
        if function is None:
            return _SIGNS[name](words[0])
        with np.errstate(all="ignore"):
            values = function(*(widened(word, kind) for word in words))
            if relu:
                values = np.where(values > 0, values, np.where(np.isnan(values), values, 0.0))
            return rounded(values, kind)

    def step(warp: Any) -> None:
        registers = warp.registers
        sources = [registers[slot] for slot in slots]
        words = [np.ascontiguousarray(spread(v, bits)).view(np.uint16) for v in sources]
        packed = np.ascontiguousarray(result(words)).view(np.uint16 if bits == 16 else np.uint32)
        uniform = all(v.__class__ is int for v in sources)
        put(warp, int(packed[0]) if uniform else packed)

    return step


_COMPARE: Mapping[str, Callable[[np.ndarray, np.ndarray], np.ndarray]] = {
    "eq": np.equal,
    "ne": np.not_equal,
    "lt": np.less,
    "le": np.less_equal,
    "gt": np.greater,
    "ge": np.greater_equal,
}


def decode_setp(instruction: ptx.Instruction, builder: Builder) -> Step:
    """Decode setp of bf16 and of pairs, which sets a predicate for each half, the low one first."""
    modifiers = Modifiers(instruction)
    kind = modifiers.need(*KINDS)
    name = modifiers.need(*_COMPARE, *(f"{name}u" for name in _COMPARE), "num", "nan")
    modifiers.done()
    into, a, b = instruction.operands
    pair = kind.endswith("x2")
    if pair != isinstance(into, ptx.Pair):
        raise ValueError("a predicate for each element of the operands")
    results = (into.first, into.second) if isinstance(into, ptx.Pair) else (into,)
    puts = [builder.put(result, 1) for result in results]
    bits = 32 if pair else 16
    slots = builder.source(a, bits), builder.source(b, bits)

    def true(x: np.ndarray, y: np.ndarray) -> np.ndarray:
        nan = np.isnan(x) | np.isnan(y)
        if name in ("num", "nan"):
            return nan if name == "nan" else ~nan
        compared = _COMPARE[name[:2]](x, y)
        return compared | nan if name.endswith("u") else compared & ~nan

    def step(warp: Any) -> None:
        sources = (warp.registers[slot] for slot in slots)
        words = [np.ascontiguousarray(spread(v, bits)).view(np.uint16) for v in sources]
        both = true(*(widened(word, kind) for word in words)).reshape(32, len(puts))
        for put, lanes in zip(puts, both.T, strict=True):
            put(warp, lane_set(lanes))

    return step
