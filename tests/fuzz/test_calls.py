"""Calls with valid, disguised and hostile arguments: the right bits, or a ValueError.

`make fuzz` draws many times as many of them. Triton's kernels, which are interpreted without a GPU,
get a tenth as many as the reference backend.
"""

import os

import numpy as np
import oracle
import torch
from arguments import NAMES, arguments
from cases import from_numpy, same_bits
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

import nvfp4  # noqa: F401 - registers the ops

OPS = torch.ops.nvfp4
TIMES = int(os.environ.get("FUZZ", "1"))
"""How many times the examples of CI are drawn."""


def _drawn(examples: int) -> settings:
    return settings(
        max_examples=examples * TIMES,
        deadline=None,
        derandomize=TIMES == 1,
        suppress_health_check=list(HealthCheck),
    )


FUZZED, FUZZED_SLOWLY = _drawn(50), _drawn(5)
REFERENCE, TRITON = "reference", "triton"

DTYPES = (torch.bfloat16, torch.float16, torch.float32)
SPECIALS = (float("nan"), float("inf"), -float("inf"), 0.0, -0.0, 1e-42, 3e38, -1e-30, 448.0)


@st.composite
def floats(draw: st.DrawFn) -> torch.Tensor:
    """A matrix [M, K] of normal numbers of any size, with special ones here and there."""
    rows, k = draw(st.integers(1, 5)), 16 * draw(st.integers(1, 5))
    torch.manual_seed(draw(st.integers(0, 2**31)))
    x = torch.randn(rows, k) * 10.0 ** draw(st.integers(-38, 38))
    for value in draw(st.lists(st.sampled_from(SPECIALS), max_size=4)):
        x[draw(st.integers(0, rows - 1)), draw(st.integers(0, k - 1))] = value
    return x.to(draw(st.sampled_from(DTYPES)))


def _quantized(x: torch.Tensor, p: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    codes, scales = oracle.quantize(x.float().numpy(), p.expand(len(x)).numpy())
    return from_numpy(oracle.pack(codes)), from_numpy(scales)


SCALES = dict(exponent=st.integers(-126, 119), eps=st.sampled_from([1e-6, 1e-30, 1.0]))


@FUZZED
@given(x=floats(), **SCALES)
def test_quantizers_have_the_oracles_bits(x, exponent, eps):
    _compare_quantizers(x, exponent, eps, REFERENCE)


@FUZZED_SLOWLY
@given(x=floats(), **SCALES)
def test_quantizers_of_triton_have_the_oracles_bits(interpreted, x, exponent, eps):
    _compare_quantizers(x, exponent, eps, TRITON)


def _compare_quantizers(x: torch.Tensor, exponent: int, eps: float, backend: str) -> None:
    p = torch.tensor([2.0**exponent * 1.1])
    data, scales = OPS.quantize(x, p, "linear", backend=backend)
    row_data, row_scales, found = OPS.quantize_dynamic(x, "linear", backend=backend)
    same_bits(found, from_numpy(oracle.row_global_scale(x.float().numpy())))
    weight = torch.randn(x.shape[1])
    normal_data, normal_scales, q, _ = OPS.rmsnorm_quantize(
        x, weight, eps, None, None, "linear", backend=backend
    )
    normalized = from_numpy(oracle.rms_norm(x.float().numpy(), weight.numpy(), eps))
    same_bits(q, from_numpy(oracle.row_global_scale(normalized.numpy())))
    for (got, got_scales), want in (
        ((data, scales), _quantized(x, p)),
        ((row_data, row_scales), _quantized(x, found)),
        ((normal_data, normal_scales), _quantized(normalized, q)),
    ):
        same_bits(got, want[0])
        same_bits(got_scales.view(torch.uint8), want[1])


@FUZZED
@given(m=st.integers(1, 4), n=st.integers(1, 9), blocks=st.integers(1, 4), seed=st.integers(0, 99))
def test_products_of_any_codes_and_scales(m, n, blocks, seed):
    """Scales of every byte but NaN, and every code."""
    torch.manual_seed(seed)
    a, b = (torch.randint(0, 256, (rows, 8 * blocks), dtype=torch.uint8) for rows in (m, n))
    scales = [torch.randint(0, 0x7F, (rows, blocks), dtype=torch.uint8) for rows in (m, n)]
    values = [oracle.decode(d.numpy(), s.numpy()) for d, s in zip((a, b), scales, strict=True)]
    swizzled = [from_numpy(oracle.swizzle(s.numpy())).view(torch.float8_e4m3fn) for s in scales]
    got = OPS.mm(a, b, *swizzled, torch.tensor(0.25), out_dtype=torch.float32)
    exact = (values[0] @ values[1].T).astype(np.float32).astype(np.float64) * 0.25
    same_bits(got, from_numpy(exact.astype(np.float32)))


def _every_other(x: torch.Tensor) -> torch.Tensor:
    wide = torch.zeros(*x.shape, 2, dtype=x.dtype)
    wide[..., 1] = x
    return wide[..., 1]


def _turned(x: torch.Tensor) -> torch.Tensor:
    return x.transpose(-1, -2).contiguous().transpose(-1, -2) if x.dim() > 1 else x


def _shifted(x: torch.Tensor) -> torch.Tensor:
    flat = torch.zeros(x.numel() + 1, dtype=x.dtype)
    flat[1:] = x.reshape(-1)
    return flat[1:].view(x.shape)


def _differentiable(x: torch.Tensor) -> torch.Tensor:
    return x.clone().requires_grad_() if x.is_floating_point() and x.element_size() > 1 else x


DISGUISES = (_every_other, _turned, _shifted, _differentiable)
HOSTILE = (
    lambda x: x[..., :-1],
    lambda x: x[:0],
    lambda x: x.unsqueeze(0),
    lambda x: x.reshape(-1),
    lambda x: x.new_empty(0),
    lambda x: x.double() if x.is_floating_point() and x.element_size() > 1 else x.int(),
    lambda x: x.view(torch.uint8),
    lambda x: x.to("meta"),
    lambda x: x.cfloat() if x.dtype == torch.float32 else x.bool(),
    lambda x: torch.full_like(x, float("nan")) if x.dtype == torch.float32 else x,
    lambda x: torch.full_like(x, -1) if x.dtype in (torch.float32, torch.int32) else x,
    lambda x: torch.full_like(x, 2**31 - 1) if x.dtype in (torch.int32, torch.int64) else x,
    lambda x: x.expand(3, *x.shape),
)
OTHERS = (None, -1, 0, 1 << 40, float("nan"), float("inf"), "", "linear", torch.int8, torch.half)


def _outputs(name: str, args: tuple, backend: str) -> tuple[torch.Tensor, ...]:
    result = getattr(OPS, name)(*args, backend=backend)
    return (result,) if isinstance(result, torch.Tensor) else tuple(result)


def _plain(value: object) -> object:
    return value.detach().clone() if isinstance(value, torch.Tensor) else value


CALLS = dict(
    data=st.data(), name=st.sampled_from(NAMES), m=st.integers(0, 4), seed=st.integers(0, 9)
)


@FUZZED
@given(**CALLS)
def test_disguised_and_hostile_arguments(data, name, m, seed):
    _disguise(data, name, m, seed, REFERENCE)


@FUZZED_SLOWLY
@given(**CALLS)
def test_disguised_and_hostile_arguments_for_triton(interpreted, data, name, m, seed):
    _disguise(data, name, m, seed, TRITON)


def _disguise(data: st.DataObject, name: str, m: int, seed: int, backend: str) -> None:
    torch.manual_seed(seed)
    layout = data.draw(st.sampled_from(["swizzled", "linear"]))
    args = list(arguments(name, m, "cpu", layout))
    want = _outputs(name, tuple(args), backend)
    tensors = [i for i, a in enumerate(args) if isinstance(a, torch.Tensor)]
    for index in data.draw(st.lists(st.sampled_from(tensors), max_size=3)):
        args[index] = data.draw(st.sampled_from(DISGUISES))(args[index])
    for got, expected in zip(_outputs(name, tuple(args), backend), want, strict=True):
        same_bits(got.detach(), expected)
    for index in data.draw(st.lists(st.integers(0, len(args) - 1), min_size=1, max_size=2)):
        value = args[index]
        try:
            if isinstance(value, torch.Tensor):
                args[index] = data.draw(st.sampled_from(HOSTILE))(value)
            else:
                args[index] = data.draw(st.sampled_from(OTHERS))
        except (IndexError, RuntimeError):
            continue  # no such view of this tensor
    try:
        got = _outputs(name, tuple(args), backend)
    except ValueError as error:
        assert str(error).startswith(f"nvfp4::{name}: "), error
    except RuntimeError as error:  # torch's own, for what the schema does not take
        assert f"nvfp4::{name}() Expected a value of type" in str(error), error
    else:  # then it is what the op takes: the same bits from plain tensors of these values
        for one, other in zip(got, _outputs(name, tuple(map(_plain, args)), backend), strict=True):
            if one.device.type == "cpu":
                same_bits(one.detach(), other)
