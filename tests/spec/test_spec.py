"""The spec against the oracle: every code, every scale, every tie."""

import numpy as np
import oracle
import pytest
import torch
from cases import from_numpy, same_bits, specials
from hypothesis import given
from hypothesis import strategies as st

import nvfp4
from nvfp4.spec import format as spec
from nvfp4.spec import glu, quantize, rounding, swizzle
from nvfp4.spec.packing import as_bytes, pack, unpack


def _around(points: np.ndarray) -> np.ndarray:
    """Each point and its float32 neighbours."""
    points = points.astype(np.float32)
    return np.concatenate(
        [
            points,
            np.nextafter(points, np.float32(-np.inf)),
            np.nextafter(points, np.float32(np.inf)),
        ]
    )


def _quantize(x: torch.Tensor, p: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    data = torch.empty(x.shape[0], x.shape[1] // 2, dtype=torch.uint8)
    return data, quantize.quantize(x, p, data)


def test_all_16_codes():
    want = np.concatenate([oracle.E2M1, -oracle.E2M1])
    got = rounding.from_e2m1(torch.arange(16, dtype=torch.uint8)).double().numpy()
    np.testing.assert_array_equal(got, want)
    assert np.signbit(got[8])


def test_all_256_scale_bytes():
    got = rounding.from_e4m3(torch.arange(256, dtype=torch.uint8).view(torch.float8_e4m3fn))
    np.testing.assert_array_equal(got.double().numpy(), oracle.E4M3)


def test_e2m1_rounding_at_every_tie_and_value():
    midpoints = (oracle.E2M1[1:] + oracle.E2M1[:-1]) / 2
    values = _around(np.concatenate([midpoints, oracle.E2M1[1:], [5.0, 7.0, 1e30, 1e-40]]))
    values = np.concatenate([values, -values, [np.float32(np.inf), np.float32(-0.0)]]).astype(
        np.float32
    )
    want = oracle.nearest(np.abs(values), oracle.E2M1) + 8 * np.signbit(values)
    np.testing.assert_array_equal(rounding.to_e2m1(torch.from_numpy(values)).numpy(), want)


def test_e2m1_ties_go_to_the_even_code():
    ties = {0.25: 0.0, 0.75: 1.0, 1.25: 1.0, 1.75: 2.0, 2.5: 2.0, 3.5: 4.0, 5.0: 4.0}
    got = rounding.from_e2m1(rounding.to_e2m1(torch.tensor(list(ties))))
    assert got.tolist() == list(ties.values())


def test_e4m3_rounding_at_every_tie_and_value():
    table = oracle.E4M3[:0x7F]
    values = _around(
        np.concatenate([(table[1:] + table[:-1]) / 2, table[1:], [460.0, 464.0, 1e30]])
    )
    want = oracle.nearest(values, table)
    got = rounding.to_e4m3(torch.from_numpy(values)).view(torch.uint8).numpy()
    np.testing.assert_array_equal(got, want)
    inf = rounding.to_e4m3(torch.tensor([torch.inf, torch.nan])).view(torch.uint8)
    assert inf.tolist() == [0x7E, 0x7F]


def test_packing_puts_even_k_in_the_low_nibble():
    codes = torch.randint(0, 16, (3, 32), dtype=torch.uint8)
    np.testing.assert_array_equal(pack(codes).numpy(), oracle.pack(codes.numpy()))
    assert torch.equal(unpack(pack(codes)), codes)
    assert pack(torch.tensor([[1, 2]], dtype=torch.uint8)).item() == 0x21
    assert torch.equal(as_bytes(pack(codes).view(torch.float4_e2m1fn_x2)), pack(codes))


@given(rows=st.integers(1, 300), blocks=st.integers(1, 20))
def test_swizzle_is_the_offset_formula(rows: int, blocks: int):
    scales = np.random.default_rng(rows * 100 + blocks).integers(
        1, 127, (rows, blocks), dtype=np.uint8
    )
    linear = from_numpy(scales).view(torch.float8_e4m3fn)
    swizzled = nvfp4.swizzle_scales(linear)
    np.testing.assert_array_equal(swizzled.view(torch.uint8).numpy(), oracle.swizzle(scales))
    same_bits(nvfp4.unswizzle_scales(swizzled, rows, blocks * 16), linear)


@pytest.mark.parametrize("scale", [1.0, 1e-5, 1e-38, 1e30])
def test_quantize_matches_the_oracle(scale: float):
    x = torch.randn(64, 128) * scale * torch.logspace(-4, 0, 64).unsqueeze(1)
    p = quantize.row_global_scales(x)
    np.testing.assert_array_equal(p.numpy(), oracle.row_global_scale(x.numpy()))
    data, scales = _quantize(x, p)
    codes, bytes_ = oracle.quantize(x.numpy(), p.numpy())
    same_bits(data, from_numpy(oracle.pack(codes)))
    same_bits(scales.view(torch.uint8), from_numpy(bytes_))


def test_scale_bytes_where_the_order_of_the_multiplications_shows():
    """bfloat16 rows with their own p put many scales on a tie: another order of the recipe's
    multiplications changes about one byte in a thousand of these.
    """
    x = torch.randn(2000, 256).to(torch.bfloat16).float()
    p = quantize.row_global_scales(x)
    amax = x.abs().view(2000, 16, 16).amax(-1).numpy()
    enc = (np.float32(1) / p.numpy()) * np.float32(1 / 6)
    want = oracle.nearest(amax * enc[:, None], oracle.E4M3[:0x7F])
    np.testing.assert_array_equal(_quantize(x, p)[1].view(torch.uint8).numpy(), want)


def test_quantize_matches_the_oracle_where_scales_are_subnormal_or_zero():
    # One global scale for rows down to a millionth of the largest: E4M3 runs out of range.
    x = torch.randn(64, 64) * torch.logspace(-6, 0, 64).unsqueeze(1)
    p = quantize.global_scale(x).view(1)
    data, scales = _quantize(x, p)
    codes, bytes_ = oracle.quantize(x.numpy(), p.expand(64).numpy())
    same_bits(data, from_numpy(oracle.pack(codes)))
    same_bits(scales.view(torch.uint8), from_numpy(bytes_))
    assert (bytes_ == 0).any() and ((bytes_ > 0) & (bytes_ < 8)).any()


def test_specials():
    x = specials()
    p = quantize.row_global_scales(x)
    np.testing.assert_array_equal(p.numpy(), oracle.row_global_scale(x.numpy()))
    data, scales = _quantize(x, p)
    codes, bytes_ = oracle.quantize(x.numpy(), p.numpy())
    same_bits(data, from_numpy(oracle.pack(codes)))
    same_bits(scales.view(torch.uint8), from_numpy(bytes_))
    assert bytes_[0, 0] == spec.NAN_SCALE and bytes_[0, 1] != spec.NAN_SCALE, (
        "a NaN stays in its block"
    )
    assert bytes_[1, 0] == 0x7E and codes[1, 5] == 7 and codes[1, 9] == 15, "an infinity saturates"
    assert (codes[6] == np.tile([0, 8], 32)).all(), "a zero keeps its sign"
    assert p[6] == 1, "an all-zero row has p = 1"


def test_global_scale():
    x = torch.randn(7, 48)
    assert nvfp4.global_scale(x) == x.abs().max() / 2688
    assert nvfp4.global_scale(torch.zeros(3, 16)) == 1
    assert nvfp4.global_scale(torch.empty(0, 16)) == 1
    assert torch.isfinite(nvfp4.global_scale(torch.tensor([torch.inf, torch.nan])))


@pytest.mark.parametrize("out_dtype", spec.FLOAT_DTYPES)
def test_dequantize_is_one_rounding_from_exact(out_dtype: torch.dtype):
    codes = torch.arange(256, dtype=torch.uint8).repeat(128, 1)  # every pair of codes, 512 elements
    scales = torch.arange(4096).remainder(0x7F).to(torch.uint8).view(128, 32)
    p = torch.rand(128)
    got = torch.empty(128, 512, dtype=out_dtype)
    quantize.dequantize(codes, scales.view(torch.float8_e4m3fn), p, got)
    exact = torch.from_numpy(oracle.decode(codes.numpy(), scales.numpy())) * p.double().unsqueeze(1)
    same_bits(got, exact.float().to(out_dtype))


def test_swiglu_accuracy():
    gate = torch.linspace(-40, 40, 100001)
    got = glu.glu(gate, torch.ones_like(gate), None).double().numpy()
    want = oracle.silu_mul(gate.numpy(), np.ones(len(gate)), None)
    relative = np.abs(got - want) / np.maximum(np.abs(want), 1e-300)
    assert relative[gate > -5].max() < 4e-7
    assert relative.max() < 2.5e-6


def test_gelu_tanh_accuracy():
    gate = torch.cat([torch.linspace(-12, 12, 40001), torch.tensor([0.0, -1e-30, 1e30, -1e30])])
    got = glu.glu(gate, torch.ones_like(gate), None, "gelu_tanh").double()
    x = gate.double()
    want = x * torch.sigmoid(2 * (2 / torch.pi) ** 0.5 * (x + 0.044715 * x**3))
    near = gate > -3
    torch.testing.assert_close(got[near], want[near], rtol=2e-6, atol=0)
    assert ((got - want).abs() <= 2e-6 * want.abs() + 1e-9).all()
    assert glu.glu(torch.tensor([torch.nan]), torch.ones(1), None, "gelu_tanh").isnan()


def test_swiglu_oai_accuracy():
    gate, up = torch.linspace(-20, 20, 20001), torch.randn(20001)
    got = glu.activate(torch.cat([gate, up])[None], 7.0, "swiglu_oai").double()[0]
    g, u = gate.double().clamp(max=7.0), up.double().clamp(-7.0, 7.0)
    want = g * torch.sigmoid(1.702 * g) * (u + 1)
    # The constant's own rounding counts most where g is far below zero.
    torch.testing.assert_close(got, want, rtol=6e-6, atol=1e-12)


def test_relu2_has_no_gate_and_keeps_nan():
    x = torch.tensor([-3.0, -0.0, 0.0, 1.5, torch.inf, -torch.inf, torch.nan])
    want = torch.tensor([0.0, 0.0, 0.0, 2.25, torch.inf, 0.0, torch.nan])
    same_bits(glu.activate(x, None, "relu2"), want)


def test_glu_limit_clamps_the_gate_before_silu():
    gate, up = torch.tensor([20.0, -20.0, 1.0]), torch.tensor([30.0, -30.0, 0.5])
    want = oracle.silu_mul(gate.numpy(), up.numpy(), 7.0)
    np.testing.assert_allclose(glu.glu(gate, up, 7.0).numpy(), want, rtol=3e-6)


def test_swiglu_constants_are_float32():
    constants = [*glu.EXP2_COEFFICIENTS, glu.NEG_LOG2_E, glu.SWIGLU_OAI_SLOPE, spec.ONE_SIXTH]
    assert [float(np.float32(c)) for c in constants] == constants


def test_scales_shape():
    assert swizzle.scales_shape((2, 3, 64), "linear") == (2, 3, 4)
    assert swizzle.scales_shape((2, 3, 64), "swizzled") == (128, 4)
    assert swizzle.scales_shape((129, 16), "swizzled") == (256, 4)
