"""Methods of quantizing a weight: each is what it says, and better than rounding to nearest."""

import pytest
import torch

import nvfp4
from nvfp4.quantization import GPTQ, METHODS, MSE, RTN, Packed, global_scale_of, quantize_matrix
from nvfp4.quantization.awq import search_factors
from nvfp4.quantization.errors import Operands, decoded, layer_error, relative
from nvfp4.quantization.gptq import gptq
from nvfp4.quantization.mse import best_scales, search_global_scale
from nvfp4.spec.format import SCALE_DTYPE
from nvfp4.spec.quantize import encode, quantize, round_trip, row_global_scales
from nvfp4.spec.rounding import from_e2m1, round_to_e2m1, to_e2m1
from nvfp4.spec.scale_rules import four_over_six

P = torch.full((1, 1), 1e-3)


def _layer(n=48, k=64, tokens=512):
    """A weight with an outlier channel, and correlated inputs of which one channel is large."""
    generator = torch.Generator().manual_seed(0)
    w = torch.randn(n, k, generator=generator) * 0.05
    w[:, 3] *= 8
    x = torch.randn(tokens, k // 4, generator=generator) @ torch.randn(
        k // 4, k, generator=generator
    )
    x += torch.randn(tokens, k, generator=generator)
    x[:, 7] *= 20
    return w, x


def _blocks():
    generator = torch.Generator().manual_seed(1)
    sizes = torch.logspace(-6, 0.4, 200)[:, None]
    gauss = torch.randn(200, 16, generator=generator)
    return torch.cat([gauss * sizes, gauss**5 * 0.02, torch.zeros(1, 16), torch.ones(1, 16) * 0.4])


def _error_by(blocks, byte, weight=1.0):
    scales = torch.full((len(blocks), 1), byte, dtype=torch.uint8).view(SCALE_DTYPE)
    return _error(blocks, scales, weight)


def _error(blocks, scales, weight=1.0):
    got = decoded(Packed(encode(blocks, scales, P), scales), P)
    return ((got.double() - blocks.double()).square() * weight).sum(-1)


def test_values_without_codes():
    ties = torch.tensor([0.25, 0.75, 1.25, 1.75, 2.5, 3.5, 5.0])
    around = torch.cat([ties, ties.nextafter(torch.tensor(0.0)), ties.nextafter(torch.tensor(9.0))])
    x = torch.cat([around, torch.randn(500) * 3, torch.tensor([0.0, 6.0, 7.0, torch.inf])])
    x = torch.cat([x, -x])
    assert torch.equal(round_to_e2m1(x), from_e2m1(to_e2m1(x)))
    assert torch.equal(round_to_e2m1(x).signbit(), x.signbit())


def test_a_round_trip_is_quantize_and_dequantize():
    x = torch.randn(5, 64)
    for p in (None, torch.tensor(0.01)):
        q = nvfp4.quantize(x, row_global_scales(x) if p is None else p)
        assert torch.equal(round_trip(x, p), q.dequantize(torch.float32))


@pytest.mark.parametrize("weighted", [False, True])
def test_no_e4m3_scale_is_better_than_the_one_that_mse_found(weighted):
    blocks = _blocks()
    weight = torch.logspace(-2, 2, 16) if weighted else None
    # The blocks are rows here: the weights are those of a place in the row.
    given = None if weight is None else weight.unsqueeze(0)
    scales = best_scales(blocks.unsqueeze(1), P, given)
    factor = 1.0 if weight is None else weight.double()
    best = torch.stack([_error_by(blocks, byte, factor) for byte in range(0x7F)]).amin(0)
    found = _error(blocks, scales.view(-1, 1), factor)
    assert (found <= best * (1 + 1e-5)).all()


def test_four_over_six_takes_the_better_of_two():
    blocks = _blocks()
    scales = four_over_six(blocks.unsqueeze(0), P).view(-1, 1)
    six = _scales_by_hand(blocks, 6)
    four = _scales_by_hand(blocks, 4)
    e6, e4 = _error(blocks, six), _error(blocks, four)
    want = torch.where(e4 < e6, four.view(torch.uint8).view(-1), six.view(torch.uint8).view(-1))
    differs = scales.view(torch.uint8).view(-1) != want
    zero = six.view(torch.uint8).view(-1) == 0  # such blocks stay zero
    close = (e4 - e6).abs() <= 1e-5 * e6  # float32 may see a tie, or the other order
    assert not (differs & ~zero & ~close).any()
    assert 0.1 < (e4 < e6).float().mean() < 0.9


def _scales_by_hand(blocks, top):
    enc = 1 / P.view(())
    part = torch.tensor(1 / 6, dtype=torch.float32) if top == 6 else 0.25
    return (blocks.abs().amax(-1, keepdim=True) * (enc * part)).clamp(max=448).to(SCALE_DTYPE)


def test_a_tie_of_four_and_six_took_four():
    """Both grids hold these values exactly: 6 has to win, and its code is 7."""
    x = torch.zeros(1, 16)
    x[0, 0] = 6.0 * 64
    p = torch.ones(1, 1)
    scales = four_over_six(x.view(1, 1, 16), p)
    assert scales.float().item() == 64.0
    x[0, 1] = 4.4 * 64  # 6's grid has 4 and 6 there; 4's has 4.5
    assert four_over_six(x.view(1, 1, 16), p).float().item() == 96.0


def test_methods_are_better_than_rounding_to_nearest():
    w, x = _layer()
    weight, output = {}, {}
    for method in METHODS:
        p = global_scale_of([w], method)
        got = decoded(quantize_matrix(w, p, method, x.T @ x), p)
        weight[method], output[method] = relative(got, w), relative(x @ got.T, x @ w.T)
    assert weight[MSE] < weight["four_over_six"] < weight[RTN]
    assert output[GPTQ] < 0.6 * output[RTN]


def test_gptq_of_independent_inputs_is_mse():
    """With H a multiple of the identity no error can be made up for."""
    w, _ = _layer()
    p = global_scale_of([w], MSE).view(1, 1)
    for act_order in (False, True):
        data, scales = gptq(w, 3 * torch.eye(64), p, act_order=act_order)
        want = quantize_matrix(w, p, MSE)
        assert torch.equal(scales.view(torch.uint8), want.scales.view(torch.uint8))
        assert torch.equal(data, want.data)


def test_gptq_columns_in_another_order_are_the_same_layer():
    """act_order gives what blocks of K give that lie in that order already."""
    w, x = _layer(k=256)
    x[:, :16] *= 30
    h = x.T @ x
    order = torch.argsort(h.diagonal().view(-1, 16).sum(1), descending=True)
    columns = (order[:, None] * 16 + torch.arange(16)).flatten()
    p = global_scale_of([w], MSE).view(1, 1)
    one = gptq(w, h, p, act_order=True)
    other = gptq(w[:, columns], h[columns][:, columns], p)
    assert torch.equal(one[0].view(len(w), -1, 8)[:, order].flatten(1), other[0])
    assert torch.equal(one[1][:, order].view(torch.uint8), other[1].view(torch.uint8))


def test_gptq_with_inputs_that_are_all_zero():
    w, _ = _layer()
    p = global_scale_of([w], MSE).view(1, 1)
    data, _ = gptq(w, torch.zeros(64, 64), p)
    assert torch.equal(data, quantize_matrix(w, p, MSE).data)


def test_the_best_global_scale_of_an_octave():
    w, _ = _layer()
    p = global_scale_of([w], MSE)
    found = search_global_scale([w], p)
    errors = [
        relative(decoded(quantize_matrix(w, q, MSE), q), w)
        for q in (p * 2 ** (i / 8) for i in range(8))
    ]
    assert relative(decoded(quantize_matrix(w, found, MSE), found), w) <= min(errors) * 1.0001


def test_factors_make_the_output_better_and_cancel():
    w, x = _layer()

    def outputs(x, w):
        return round_trip(x) @ round_trip(w, global_scale_of([w], RTN)).T

    f = search_factors(x, w, outputs)
    want = x @ w.T
    torch.testing.assert_close((x / f) @ (w * f).T, want, rtol=1e-4, atol=1e-3)
    assert relative(outputs(x / f, w * f), want) < 0.9 * relative(outputs(x, w), want)


def test_an_expert_without_tokens_had_an_output_without_error():
    w, x = _layer()
    p = global_scale_of([w], MSE)
    quantized = decoded(quantize_matrix(w, p, MSE), p)
    for seen in (x, x[:0]):
        found = layer_error("a", Operands(w, seen), Operands(w, seen), quantized, True)
        assert 0 < found.weight < found.weight_rtn
        assert (found.output is None) == (found.output_rtn is None) == (len(seen) == 0)


@pytest.mark.parametrize("k_dim", [0, 1])
def test_quantize_weight_by_each_method(k_dim):
    w, x = _layer()
    for method in METHODS:
        given = w.T.contiguous() if k_dim == 0 else w
        inputs = x.view(2, -1, 64) if method == GPTQ else None
        q = nvfp4.quantize_weight(given, k_dim, method=method, inputs=inputs).validate()
        assert q.global_scale == w.abs().amax() / (2688 if method == RTN else 1536)
        assert relative(q.dequantize(torch.float32), w) < 0.2
        same = nvfp4.quantize_weight(given, k_dim, q.global_scale, method, inputs)
        assert torch.equal(same.data, q.data)


@pytest.mark.parametrize(
    "arguments, said",
    [
        (dict(method="best"), "method needs one of rtn, four_over_six, mse, gptq, got 'best'"),
        (dict(method="gptq"), r"inputs needs inputs \[..., K\] of the layer, got None"),
        (dict(inputs=torch.zeros(4, 64)), "inputs needs None with method 'rtn', got some"),
        (dict(method="gptq", inputs=torch.zeros(4, 32)), r"inputs needs K = 64 .* shape \[4, 32\]"),
    ],
)
def test_bad_arguments(arguments, said):
    with pytest.raises(ValueError, match=f"nvfp4.quantize_weight: {said}"):
        nvfp4.quantize_weight(torch.zeros(8, 64), **arguments)


def test_rtn_by_the_methods_is_the_ops():
    w, _ = _layer()
    p = global_scale_of([w], RTN)
    data = torch.empty(48, 32, dtype=torch.uint8)
    scales = quantize(w, p, data)
    got = quantize_matrix(w, p, RTN)
    assert torch.equal(got.data, data) and torch.equal(
        got.scales.view(torch.uint8), scales.view(torch.uint8)
    )
