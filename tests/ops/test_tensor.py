"""QuantizedTensor: what it says of itself, validation, concatenation."""

import dataclasses
import pickle

import pytest
import torch
from cases import same_bits

import nvfp4


@pytest.fixture
def q(device) -> nvfp4.QuantizedTensor:
    return nvfp4.quantize(torch.randn(2, 3, 96, device=device))


def test_parts(q, device):
    assert q.shape == (2, 3, 96) and q.rows == 6 and q.device.type == device
    assert q.data.shape == (2, 3, 48) and q.scales.shape == (128, 8) and q.global_scale.shape == ()
    assert q.nbytes == 6 * 48 + 128 * 8 + 4
    assert q.dequantize().shape == (2, 3, 96)
    same_bits(nvfp4.dequantize(q, torch.float32), q.dequantize(torch.float32))
    same_bits(q.to("cpu").data, q.data)


def test_linear_layout(device):
    x = torch.randn(5, 96, device=device)
    linear, swizzled = nvfp4.quantize(x, scale_layout="linear"), nvfp4.quantize(x)
    same_bits(linear.linear_scales(), swizzled.linear_scales())
    same_bits(linear.dequantize(), swizzled.dequantize())
    assert linear.validate() is linear


def test_per_row_global_scales(device):
    x = torch.randn(5, 96, device=device) * torch.logspace(-2, 2, 5, device=device).unsqueeze(1)
    q = nvfp4.quantize_dynamic(x).validate()
    assert q.global_scale.shape == (5,)
    error = (q.dequantize(torch.float32) - x).norm(dim=1) / x.norm(dim=1)
    assert error.max() < 0.15


def test_pickle(q):
    twin = pickle.loads(pickle.dumps(q))
    same_bits(twin.scales, q.scales)
    same_bits(twin.dequantize(), q.dequantize())


def _replace(q: nvfp4.QuantizedTensor, **parts: torch.Tensor) -> nvfp4.QuantizedTensor:
    return dataclasses.replace(q, **parts)


def _scale_byte(q: nvfp4.QuantizedTensor, row: int, block: int, byte: int) -> torch.Tensor:
    scales = q.scales.view(torch.uint8).clone()
    scales[row, block] = byte
    return scales.view(torch.float8_e4m3fn)


@pytest.mark.parametrize(
    "damage, message",
    [
        (
            lambda q: {"scales": q.scales[:64]},
            r"scales needs the swizzled shape \[128, 8\], got \[64, 8\]",
        ),
        (
            lambda q: {"scales": _scale_byte(q, 0, 0, 0x7F)},
            "scales needs bytes 0x00 to 0x7E, got 1 that are NaN",
        ),
        (lambda q: {"scales": _scale_byte(q, 0, 0, 0x90)}, "scales needs bytes 0x00 to 0x7E"),
        (lambda q: {"scales": _scale_byte(q, 127, 7, 1)}, "scales needs padding bytes 0x00"),
        (
            lambda q: {"global_scale": q.global_scale * 0},
            "global_scale needs finite positive values, got 0.0",
        ),
        (
            lambda q: {"global_scale": q.global_scale * torch.inf},
            "global_scale needs finite positive values, got inf",
        ),
        (
            lambda q: {"global_scale": q.global_scale.expand(4)},
            "global_scale needs a size that divides the 6 rows",
        ),
    ],
)
def test_validate(q, damage, message):
    with pytest.raises(ValueError, match=message):
        _replace(q, **damage(q)).validate()


def test_concatenate_refuses_other_shapes():
    a, b = nvfp4.quantize(torch.randn(4, 32)), nvfp4.quantize(torch.randn(4, 48))
    with pytest.raises(
        ValueError, match=r"parts needs \[N, K\] with one K, got \[\[4, 32\], \[4, 48\]\]"
    ):
        nvfp4.concatenate([a, b])
    with pytest.raises(ValueError, match="parts needs at least one tensor"):
        nvfp4.concatenate([])


def test_concatenate_of_concatenated_keeps_every_scale():
    parts = [nvfp4.quantize(torch.randn(n, 32) * n) for n in (8, 12, 4)]
    once = nvfp4.concatenate(parts)
    twice = nvfp4.concatenate([nvfp4.concatenate(parts[:2]), parts[2]])
    same_bits(once.row_scales(), twice.row_scales())
    same_bits(once.dequantize(), twice.dequantize())


def test_quantize_weight_refuses_what_is_not_a_matrix():
    with pytest.raises(ValueError, match=r"w needs 2 dimensions, got shape \[2, 3, 32\]"):
        nvfp4.quantize_weight(torch.randn(2, 3, 32))
    with pytest.raises(ValueError, match="k_dim needs a dimension of w"):
        nvfp4.quantize_weight(torch.randn(3, 32), k_dim=2)


def _in_both_layouts(*shape: int) -> tuple[nvfp4.QuantizedTensor, nvfp4.QuantizedTensor]:
    """A tensor whose scales have one shape in both layouts, as nearly every real layer's do."""
    linear = nvfp4.quantize(torch.randn(shape), scale_layout="linear")
    assert linear.scales.shape == linear.swizzled().scales.shape
    return linear, linear.swizzled()


def test_mm_reads_linear_scales_as_what_they_are():
    a, b = _in_both_layouts(128, 64), _in_both_layouts(128, 64)
    want = nvfp4.mm(a[1], b[1])
    for got in (nvfp4.mm(a[0], b[1]), nvfp4.mm(a[1], b[0]), nvfp4.mm(a[0], b[0])):
        same_bits(got, want)


def test_swiglu_mlp_reads_linear_scales_as_what_they_are():
    w13, w2 = _in_both_layouts(256, 64), _in_both_layouts(128, 128)
    x = torch.randn(3, 64)
    want = nvfp4.swiglu_mlp(x, w13[1], w2[1])
    same_bits(nvfp4.swiglu_mlp(x, w13[0], w2[1]), want)
    same_bits(nvfp4.swiglu_mlp(x, w13[1], w2[0]), want)


def test_experts_are_stacked_from_linear_scales():
    linear, swizzled = _in_both_layouts(128, 64)
    same_bits(nvfp4.stack_experts([linear]).scales, nvfp4.stack_experts([swizzled]).scales)
