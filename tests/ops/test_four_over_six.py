"""scale_rule="four_over_six": the oracle's bits on the reference, and the reference's everywhere.

Its kernels' forms are in support/kernel_forms.py, which triton/test_emulated.py executes.
"""

import oracle
import pytest
import torch
from arguments import arguments
from cases import activations, from_numpy, same_bits, specials
from close_scales import close_blocks
from routing import moved

import nvfp4
from nvfp4.layers import Linear, MoE, SwiGLUMLP
from nvfp4.spec.glu import activate
from nvfp4.spec.scale_rules import AMAX_OVER_SIX, FOUR_OVER_SIX

OPS = torch.ops.nvfp4


def _same(got: tuple, want: tuple) -> None:
    for g, w in zip(got, want, strict=True):
        same_bits(g, w)


def test_the_reference_has_the_oracles_bits():
    """On any data, on NaN, Inf and subnormals, and where the two scales are as good."""
    x = torch.cat([activations(6, 80).float(), specials(80)])
    data, scales, p = OPS.quantize_dynamic(x, "linear", FOUR_OVER_SIX, "reference")
    same_bits(p, from_numpy(oracle.row_global_scale(x.numpy(), 256)))
    for rows, row_scale in ((x, p), (close_blocks(), torch.ones(49))):
        data, scales = OPS.quantize(rows, row_scale, "linear", FOUR_OVER_SIX, "reference")
        codes, bytes_ = oracle.quantize(rows.numpy(), row_scale.numpy(), four_over_six=True)
        same_bits(data, from_numpy(oracle.pack(codes)))
        same_bits(scales.view(torch.uint8), from_numpy(bytes_))


def test_both_scales_are_taken_and_the_error_never_grows():
    """With one global scale, no block is worse than by the default rule."""
    x, p = torch.randn(16, 256), torch.tensor(0.002)
    six, four = (nvfp4.quantize(x, p, "linear", rule) for rule in (AMAX_OVER_SIX, FOUR_OVER_SIX))
    changed = (six.scales.float() != four.scales.float()).float().mean()
    assert 0.3 < changed < 0.7

    def errors(q):
        return (q.dequantize(torch.float32) - x).view(-1, 16).double().square().sum(1)

    assert (errors(four) <= errors(six) * (1 + 1e-5)).all()


@pytest.mark.op("quantize_dynamic")
def test_quantizers(backend, device):
    """Scales found, of rows, and of all; NaN and Inf; errors that are nearly equal."""
    for x in (activations(33, 144), specials(80)):
        want = OPS.quantize_dynamic(x, "swizzled", FOUR_OVER_SIX, "reference")
        _same(OPS.quantize_dynamic(x.to(device), "swizzled", FOUR_OVER_SIX, backend), want)
    for x, p in ((close_blocks(), torch.tensor(1.0)), (specials(80), torch.rand(8) + 0.01)):
        want = OPS.quantize(x, p, "linear", FOUR_OVER_SIX, "reference")
        _same(OPS.quantize(x.to(device), p.to(device), "linear", FOUR_OVER_SIX, backend), want)


@pytest.mark.op("glu_quantize")
@pytest.mark.parametrize("activation", ["silu", "relu2"])
def test_glu_quantize_is_quantize_dynamic_of_the_product(backend, device, activation):
    gate_up = activations(9, 192, torch.float16)
    args = None, None, None, "linear", FOUR_OVER_SIX, activation
    product = activate(gate_up.float(), None, activation)
    want = OPS.quantize_dynamic(product, "linear", FOUR_OVER_SIX, "reference")
    _same(OPS.glu_quantize(gate_up.to(device), *args, backend), want)


@pytest.mark.op("rmsnorm_quantize")
def test_rmsnorm_quantize(backend, device):
    x, weight = activations(5, 144), torch.randn(144)
    for p in (None, torch.tensor(0.3)):
        args = x, weight, 1e-6, None, p, "swizzled", FOUR_OVER_SIX
        there = [moved(a, device) if isinstance(a, torch.Tensor) else a for a in args]
        want = OPS.rmsnorm_quantize(*args, "reference")
        _same(OPS.rmsnorm_quantize(*there, backend), want)


@pytest.mark.op("linear")
@pytest.mark.parametrize("static", [False, True])
def test_linear_is_its_stages(backend, device, static):
    x = activations(7, 144).to(device)
    w = nvfp4.quantize_weight(torch.randn(48, 144)).to(device)
    p = torch.tensor(0.02, device=device) if static else None
    packed = w.data, w.scales, w.global_scale
    got = OPS.linear(x, *packed, p, None, FOUR_OVER_SIX, backend=backend)
    if static:
        a = nvfp4.quantize(x, p, scale_rule=FOUR_OVER_SIX)
        want = OPS.mm(a.data, w.data, a.scales, w.scales, p * w.global_scale, backend=backend)
    else:
        a = nvfp4.quantize_dynamic(x, scale_rule=FOUR_OVER_SIX)
        alpha = w.global_scale.view(1)
        operands = a.data, w.data, a.scales, w.scales, alpha, a.global_scale
        want = OPS.mm(*operands, backend=backend)
    same_bits(got, want)
    other = OPS.linear(x, *packed, p, None, AMAX_OVER_SIX, backend=backend)
    assert not torch.equal(got, other)


@pytest.mark.parametrize(
    "name",
    ["quantize", "quantize_dynamic", "rmsnorm_quantize", "moe_dispatch", "moe", "swiglu_mlp"],
)
def test_a_rule_that_there_is_not(name):
    need = f"nvfp4::{name}: scale_rule needs 'amax_over_six' or 'four_over_six', got 'best'"
    with pytest.raises(ValueError, match=need):
        getattr(OPS, name)(*arguments(name, 6, "cpu"), scale_rule="best")


def test_a_rule_for_warmup_that_there_is_not():
    for call in (
        lambda: nvfp4.warmup([(64, 64)], 1, scale_rule="best", device="cpu"),
        lambda: nvfp4.quantize_model(torch.nn.Sequential(torch.nn.Linear(16, 16)), (), "best"),
    ):
        with pytest.raises(ValueError, match="scale_rule needs 'amax_over_six' or .*, got 'best'"):
            call()


def test_16_bit_activations_have_no_other_rule():
    args = arguments("linear", 6, "cpu")
    need = "scale_rule needs 'amax_over_six' with activation='bf16', which quantizes nothing, got"
    with pytest.raises(ValueError, match=need):
        OPS.linear(*args, activation="bf16")


def test_layers_pass_their_rule_on():
    """Each layer's rule is an attribute that may be set later, and both quantizers follow it."""
    x, ids = torch.randn(5, 64), torch.tensor([[0, 1]] * 5)
    gate, up, down = torch.randn(2, 32, 64), torch.randn(2, 32, 64), torch.randn(2, 64, 32)
    linears = [torch.nn.Linear(64, 32), torch.nn.Linear(64, 32), torch.nn.Linear(32, 64)]
    layers = (
        (Linear.from_float(linears[0]), (x,)),
        (SwiGLUMLP.from_float(*linears), (x,)),
        (MoE.from_float(gate, up, down), (x, torch.rand(5, 2), ids)),
    )
    for layer, inputs in layers:
        before = layer(*inputs)
        layer.scale_rule = FOUR_OVER_SIX
        after = layer(*inputs)
        assert not torch.equal(before, after) and FOUR_OVER_SIX in layer.extra_repr()
    a = nvfp4.quantize_dynamic(x, scale_rule=FOUR_OVER_SIX)
    moe = layers[2][0]
    w13, w2 = moe.packed()
    rows, positions = nvfp4.moe_dispatch(x, ids, 2, scale_rule=FOUR_OVER_SIX)
    same_bits(rows.data[:5], a.data)
    h = nvfp4.grouped_mm_glu_quantize(
        rows, w13, gate_up_dtype=torch.float32, scale_rule=FOUR_OVER_SIX
    )
    y = nvfp4.grouped_mm(h, w2, out_dtype=torch.float32)
    same_bits(nvfp4.moe_combine(y, layers[2][1][1], positions), moe(*layers[2][1]))
