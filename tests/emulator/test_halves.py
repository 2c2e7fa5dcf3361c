"""What the emulator does with float16 and bfloat16, against torch and exact arithmetic."""

from fractions import Fraction

import numpy as np
import pytest
import torch
from emulated_ptx import run
from emulated_values import across, each

from nvfp4.emulator import UnsupportedInstruction

TORCH = {"f16": torch.float16, "bf16": torch.bfloat16}
EVERY = np.arange(1 << 16, dtype=np.uint16)
EDGES = [0, 0x8000, 1, 0x8001, 0x3FF, 0x400, 0x3C00, 0x3F80, 0x7BFF, 0x7C00, 0xFC00, 0x7E00,
         0x7F7F, 0x7F80, 0xFF80, 0x7FC0, 0x0080, 0x007F]  # fmt: skip


def patterns(seed: int, count: int) -> np.ndarray:
    """Random 16-bit patterns, a quarter of which are zeros, denormals, limits and NaNs."""
    random = np.random.default_rng(seed)
    values = random.integers(0, 1 << 16, count, np.uint16)
    values[random.random(count) < 0.25] = random.choice(EDGES)
    values[::7] = random.choice(EDGES, len(values[::7]))
    return values


def numbers(words: np.ndarray, kind: str) -> torch.Tensor:
    return torch.from_numpy(words.view(np.int16).copy()).view(TORCH[kind])


def words(values: torch.Tensor) -> np.ndarray:
    """Their patterns, with the canonical NaN."""
    raw = values.view(torch.int16).numpy().view(np.uint16)
    return np.where(torch.isnan(values).numpy(), np.uint16(0x7FFF), raw)


BINARY = {
    "add": torch.add,
    "sub": torch.sub,
    "mul": torch.mul,
    "min.NaN": torch.minimum,
    "max.NaN": torch.maximum,
    "min": torch.fmin,
    "max": torch.fmax,
}


@pytest.mark.parametrize("kind", TORCH)
@pytest.mark.parametrize("name", BINARY)
def test_halves_are_combined(name, kind):
    """Every pattern is multiplied; the other operations have a sample of 4096."""
    count = 1 << 16 if name == "mul" else 1 << 12
    a, b = EVERY if name == "mul" else patterns(0, count), patterns(1, count)
    rounding = "rn." if name in ("add", "sub", "mul") else ""
    got = across(f"{name}.{rounding}{kind} {{0}},{{1}},{{2}};", "u2", a, b)
    x, y = numbers(a, kind), numbers(b, kind)
    # torch rounds a sum or product of float32 to float32 and then to 16 bits; in float64 these are
    # exact, so that one rounding is left
    want = words(BINARY[name](x.double(), y.double()).to(TORCH[kind]))
    zeros = (x == 0) & (y == 0) if name.startswith(("min", "max")) else torch.zeros_like(x) != 0
    keep = ~zeros.numpy()  # torch takes either of -0 and +0
    np.testing.assert_array_equal(got[keep], want[keep])
    both = a[~keep] | b[~keep] if name.startswith("min") else a[~keep] & b[~keep]
    np.testing.assert_array_equal(got[~keep], both)


def exact_half(value: Fraction, kind: str) -> int:
    """The pattern nearest to a number, ties to even, by exact arithmetic."""
    bits, low = {"f16": (11, -14), "bf16": (8, -126)}[kind]
    if not value:
        return 0
    sign, value = (0x8000 if value < 0 else 0), abs(value)
    exponent = low
    while value >= Fraction(2) ** (exponent + 1):
        exponent += 1
    unit = Fraction(2) ** (exponent - bits + 1)
    count = round(value / unit)  # to even
    raw = (exponent - low << bits - 1) + count
    top = {"f16": 0x7C00, "bf16": 0x7F80}[kind]
    return sign | min(raw, top)


@pytest.mark.parametrize("kind", TORCH)
def test_fused_multiply_adds_of_halves_round_once(kind):
    a, b, c = (patterns(seed, 2048) for seed in (2, 3, 4))
    near = numbers(a, kind).double() * numbers(b, kind).double()
    c[::2] = words(-near.to(TORCH[kind]))[::2]  # sums that cancel
    x, y, z = (numbers(v, kind).double() for v in (a, b, c))
    finite = (torch.isfinite(x) & torch.isfinite(y) & torch.isfinite(z)).numpy()
    got = across(f"fma.rn.{kind} {{0}},{{1}},{{2}},{{3}};", "u2", a, b, c)
    special = words((x * y + z).to(TORCH[kind]))
    for i in range(len(a)):
        if not finite[i]:
            assert got[i] == special[i]
            continue
        exact = Fraction(x[i].item()) * Fraction(y[i].item()) + Fraction(z[i].item())
        want = exact_half(exact, kind) if exact else special[i]
        assert got[i] == want, (hex(a[i]), hex(b[i]), hex(c[i]))


@pytest.mark.parametrize("kind", TORCH)
def test_signs_of_halves(kind):
    np.testing.assert_array_equal(across(f"neg.{kind} {{0}},{{1}};", "u2", EVERY), EVERY ^ 0x8000)
    np.testing.assert_array_equal(across(f"abs.{kind} {{0}},{{1}};", "u2", EVERY), EVERY & 0x7FFF)


@pytest.mark.parametrize("kind", TORCH)
def test_pairs_of_halves_are_computed_apart(kind):
    a, b = (patterns(seed, 64) for seed in (5, 6))
    got = each(f"mul.rn.{kind}x2 {{0}},{{1}},{{2}};", "u4", a.view(np.uint32), b.view(np.uint32))
    product = numbers(a, kind).double() * numbers(b, kind).double()
    np.testing.assert_array_equal(got.view(np.uint16), words(product.to(TORCH[kind])))


@pytest.mark.parametrize("kind", TORCH)
def test_fused_pairs_keep_nans_and_drop_negatives_with_relu(kind):
    a = np.tile(words(torch.tensor([-1.0, 0.5], dtype=TORCH[kind])), 32)
    b, c = patterns(6, 64), patterns(9, 64)
    pairs = (v.view(np.uint32) for v in (a, b, c))
    got = each(f"fma.rn.relu.{kind}x2 {{0}},{{1}},{{2}},{{3}};", "u4", *pairs).view(np.uint16)
    x, y, z = (numbers(v, kind).double() for v in (a, b, c))
    total = x * y + z  # exact, or far from a tie of 16 bits
    positive = torch.where(total > 0, total, torch.where(torch.isnan(total), total, 0.0))
    np.testing.assert_array_equal(got, words(positive.to(TORCH[kind])))


@pytest.mark.parametrize("name", ["eq", "ne", "lt", "gt", "equ", "geu", "num", "nan"])
def test_pairs_of_halves_are_compared(name):
    a, b = (patterns(seed, 64) for seed in (7, 8))
    b[::3] = a[::3]
    body = (
        f"setp.{name}.f16x2 %q0|%q1,{{1}},{{2}}; selp.u32 {{0}},1,0,%q0; @%q1 or.b32 {{0}},{{0}},2;"
    )
    got = each(body, "u4", a.view(np.uint32), b.view(np.uint32))
    x, y = a.view(np.float16), b.view(np.float16)
    nan = np.isnan(x) | np.isnan(y)
    compare = {"eq": x == y, "ne": x != y, "lt": x < y, "gt": x > y, "ge": x >= y}
    if name in ("num", "nan"):
        true = nan if name == "nan" else ~nan
    else:
        true = compare[name[:2]] & ~nan | (nan if name.endswith("u") else False)
    np.testing.assert_array_equal(got, true.reshape(32, 2) @ np.array([1, 2]))


def test_other_operations_on_halves_are_refused():
    with pytest.raises(UnsupportedInstruction, match="tanh of bf16"):
        run("tanh.approx.bf16 %h0,%h1;")
