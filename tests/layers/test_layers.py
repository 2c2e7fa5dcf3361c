"""The modules: conversion, state_dict, devices, dtypes, pickling, compilation, threads."""

import copy
import io
import pickle
import threading

import pytest
import torch
from cases import activations, same_bits
from torch import Tensor, nn

import nvfp4
from nvfp4.ahead.warmup import moe_workloads, routed, warmup_moe
from nvfp4.layers import Linear, MoE, SwiGLUMLP, deinterleave_gate_up

H, INTER, E, TOP_K = 96, 64, 4, 2


def _linear(device: str) -> Linear:
    return Linear.from_float(nn.Linear(H, 40, device=device))


def _mlp(device: str, **options) -> SwiGLUMLP:
    gate, up = (nn.Linear(H, INTER, bias=False, device=device) for _ in range(2))
    return SwiGLUMLP.from_float(gate, up, nn.Linear(INTER, H, bias=False, device=device), **options)


def _moe(device: str, **options) -> MoE:
    gate, up = (torch.randn(E, INTER, H, device=device) * 0.1 for _ in range(2))
    return MoE.from_float(gate, up, torch.randn(E, H, INTER, device=device) * 0.1, **options)


LAYERS = {"linear": _linear, "swiglu_mlp": _mlp, "moe": _moe}


@pytest.fixture(params=LAYERS)
def make(request):
    return LAYERS[request.param]


def _inputs(layer: nn.Module, m: int, device: str) -> tuple[Tensor, ...]:
    x = torch.randn(m, H, device=device)
    if not isinstance(layer, MoE):
        return (x,)
    scores = torch.randn(m, E, device=device).softmax(-1)
    return (x, *torch.topk(scores, TOP_K))


@pytest.fixture
def layer(device) -> Linear:
    return _linear(device)


def test_from_float(layer, device):
    x = torch.randn(2, 5, H, device=device)
    want = torch.ops.nvfp4.linear(
        x, layer.weight, layer.weight_scales, layer.weight_global_scale, None, layer.bias
    )
    same_bits(layer(x), want)
    assert "in_features=96, out_features=40" in repr(layer)


def test_static_input_scale(device):
    float_layer = nn.Linear(H, 40, bias=False, device=device)
    x = torch.randn(5, H, device=device)
    layer = Linear.from_float(float_layer, input_global_scale=nvfp4.global_scale(x))
    error = (layer(x) - float_layer(x)).norm() / float_layer(x).norm()
    assert error < 0.2 and "static" in repr(layer)


def test_state_dict_pickle_and_copy(make, device):
    layer = make(device)
    inputs = _inputs(layer, 5, device)
    want = layer(*inputs)
    other = make(device)
    assert not torch.equal(other(*inputs), want)
    other.load_state_dict(layer.state_dict())
    saved = io.BytesIO()
    torch.save(layer.state_dict(), saved)
    saved.seek(0)
    loaded = make(device)
    loaded.load_state_dict(torch.load(saved))
    twins = other, loaded, pickle.loads(pickle.dumps(layer)), copy.deepcopy(layer), copy.copy(layer)
    for twin in twins:
        assert repr(twin) == repr(layer)
        same_bits(twin(*inputs), want)


def test_casting_the_module_does_not_touch_its_numbers(make, device):
    layer = make(device)
    before = {name: tensor.clone() for name, tensor in layer.state_dict().items()}
    assert any(tensor.dtype == torch.float8_e4m3fn for tensor in before.values())
    nn.Sequential(layer).half().double().to(torch.bfloat16)
    for name, tensor in layer.state_dict().items():
        same_bits(tensor, before[name])
    assert all(tensor.device.type == "meta" for tensor in layer.to("meta").buffers())


def test_compile_fullgraph(layer, device, compiles):
    block = nn.Sequential(layer, nn.ReLU())
    compiled = torch.compile(block, fullgraph=True, dynamic=True)
    for m in (3, 17):
        x = torch.randn(m, H, device=device)
        same_bits(compiled(x), block(x))


class Block(nn.Module):
    """What a layer of a mixture-of-experts model does besides attention itself."""

    def __init__(self, device: str) -> None:
        super().__init__()
        self.proj = Linear.from_float(nn.Linear(H, H, device=device))
        self.router = nn.Linear(H, E, bias=False, device=device)
        self.shared = _mlp(device, swiglu_limit=7.0)
        self.experts = _moe(device, swiglu_limit=7.0)

    def forward(self, x: Tensor) -> Tensor:
        x = x + self.proj(x)
        weights, ids = torch.topk(self.router(x).softmax(-1), TOP_K)
        return x + self.shared(x) + self.experts(x, weights, ids)


@torch.no_grad()
def test_a_block_compiles_to_one_graph_for_every_number_of_tokens(device, compiles):
    from torch._dynamo.testing import CompileCounterWithBackend

    block, counter = Block(device), CompileCounterWithBackend("aot_eager")
    compiled = torch.compile(block, backend=counter, fullgraph=True, dynamic=True)
    compiled(torch.randn(3, H, device=device))
    graphs = counter.frame_count  # Dynamo starts anew once, to make the limit a constant
    for m in (3, 17, 40):
        x = torch.randn(m, H, device=device)
        same_bits(compiled(x), block(x))
    assert counter.frame_count == graphs
    targets = {str(node.target) for node in counter.graphs[-1].graph.nodes}
    assert {"nvfp4.linear", "nvfp4.swiglu_mlp", "nvfp4.moe"} <= targets


@torch.no_grad()
def test_two_threads_at_once_get_the_bits_of_one(device):
    block = Block(device)
    tokens = [torch.randn(m, H, device=device) for m in (33, 5)]
    want = [block(x) for x in tokens]
    got: list[list[Tensor]] = [[], []]
    ready = threading.Barrier(2)

    def call(index: int) -> None:
        ready.wait()
        with torch.no_grad():
            got[index] += [block(tokens[index]) for _ in range(10)]

    threads = [threading.Thread(target=call, args=(index,)) for index in range(2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    for outs, expected in zip(got, want, strict=True):
        assert len(outs) == 10
        for out in outs:
            same_bits(out, expected)


# Linear from what checkpoints hold.


@pytest.mark.parametrize("n, k", [(40, 96), (128, 64)])  # of the second both layouts have one shape
@pytest.mark.parametrize("layout", ["linear", "swizzled"])
def test_from_packed(n, k, layout, device):
    q = nvfp4.quantize_weight(torch.randn(n, k, device=device))
    scale = q.linear_scales() if layout == "linear" else q.scales
    bias, x = torch.randn(n, device=device), torch.randn(5, k, device=device)
    layer = Linear.from_packed(
        q.data, scale, q.global_scale.reshape(1), bias=bias, scale_layout=layout
    )
    same_bits(layer.packed().scales, q.scales)
    same_bits(layer(x), Linear(q, bias)(x))
    p = nvfp4.global_scale(x)
    static = Linear.from_packed(q.data, scale, q.global_scale, p, scale_layout=layout)
    same_bits(static(x), Linear(q, input_global_scale=p)(x))


@pytest.mark.parametrize(
    "damage, message",
    [
        (lambda data, scale, p: (data, scale, p * 0), "global_scale needs finite positive values"),
        (lambda data, scale, p: (data, scale[:, :-1], p), r"scales needs the linear shape \[40, 6"),
        (
            lambda data, scale, p: (data, torch.full_like(scale, float("nan")), p),
            "scales needs bytes 0x00 to 0x7E, got 240 that are NaN or negative",
        ),
        (lambda data, scale, p: (data.to(torch.int8), scale, p), "weight needs dtype uint8"),
    ],
)
def test_from_packed_refuses(damage, message):
    q = nvfp4.quantize(torch.randn(40, H), scale_layout="linear")
    with pytest.raises(ValueError, match=message):
        Linear.from_packed(*damage(q.data, q.scales, q.global_scale))


def test_scale_of_fused_parts_was_their_maximum(device):
    """Parts whose scales differ twofold: one scale for both would make one part twice too large."""
    small = torch.randn(24, H, device=device)
    parts = [nvfp4.quantize_weight(w) for w in (small, 2 * torch.randn(48, H, device=device))]
    parts[1] = nvfp4.QuantizedTensor(parts[1].data, parts[1].scales, 2 * parts[0].global_scale)
    bias, x = torch.randn(72, device=device), torch.randn(5, H, device=device)
    fused = Linear.fused(parts, bias)
    assert fused.weight_global_scale.numel() == 3
    apart = [Linear(q, b)(x) for q, b in zip(parts, bias.split([24, 48]), strict=True)]
    same_bits(fused(x), torch.cat(apart, 1))
    fused.weight_global_scale = fused.weight_global_scale.max()
    wrong = (fused(x) - bias)[:, :24] / (apart[0] - bias[:24])
    torch.testing.assert_close(wrong, torch.full_like(wrong, 2.0), rtol=1e-3, atol=0)


def test_fused_from_float_layers(device):
    layers = [nn.Linear(H, n, device=device) for n in (32, 16, 16)]
    x = torch.randn(5, H, device=device)
    apart = [Linear.from_float(layer)(x) for layer in layers]
    same_bits(Linear.fused(layers)(x), torch.cat(apart, 1))


@pytest.mark.parametrize(
    "parts, message",
    [
        ([], r"at least one, got \[\]"),
        ([nn.Linear(32, 16), nn.Linear(32, 16, bias=False)], "got 1 in 2 parts"),
        ([nn.Linear(32, 16), "q"], r"got \['Linear', 'str'\]"),
    ],
)
def test_fused_refuses(parts, message):
    with pytest.raises(ValueError, match=message):
        Linear.fused(parts)


def test_k_not_a_multiple_of_16_is_refused(device):
    with pytest.raises(ValueError, match="multiple of 16"):
        Linear.from_float(nn.Linear(100, 40, device=device))


# Gated layers.


def test_swiglu_mlp_is_its_op(device):
    x = torch.randn(2, 5, H, device=device)
    p = torch.tensor(0.01, device=device)
    layer = _mlp(device, x_global_scale=p, h_global_scale=p, swiglu_limit=1.0)
    w13, w2 = layer.packed()
    assert layer.w13_global_scale.numel() == 2
    same_bits(layer(x), nvfp4.swiglu_mlp(x, w13, w2, p, p, swiglu_limit=1.0))
    gelu = SwiGLUMLP(w13, w2, activation="gelu_tanh")
    same_bits(gelu(x), nvfp4.swiglu_mlp(x, w13, w2, activation="gelu_tanh"))
    assert "hidden=96, intermediate=64, activation=silu, swiglu_limit=1.0, x_scale=static" in repr(
        layer
    )
    assert "activation=gelu_tanh, x_scale=dynamic, h_scale=dynamic" in repr(gelu)


@pytest.mark.parametrize("activation", ["swiglu_oai", "relu2"])
def test_a_w4a16_mlp_ran_w4a4(device, activation):
    """It computes what a mixture of one expert in W4A16 computes."""
    x, parts = torch.randn(2, 5, H, device=device).bfloat16(), 1 if activation == "relu2" else 2
    w13 = nvfp4.quantize_experts(torch.randn(1, parts * INTER, H, device=device), segments=parts)
    w2 = nvfp4.quantize_experts(torch.randn(1, H, INTER, device=device))
    limit = 2.0 if parts == 2 else None
    biases = torch.randn(1, parts * INTER, device=device), torch.randn(1, H, device=device)
    options = dict(activation_format="bf16", activation=activation, backend="reference")
    mlp = SwiGLUMLP(w13[0], w2[0], None, None, *(b[0] for b in biases), limit, **options)
    moe = MoE(w13, w2, None, None, *biases, swiglu_limit=limit, **options)
    first = torch.zeros(10, 1, dtype=torch.int64, device=device)
    same_bits(mlp(x).flatten(0, 1), moe(x.flatten(0, 1), torch.ones_like(first).float(), first))
    assert "activation_format=bf16" in repr(mlp)
    mlp.activation_format = "nvfp4"
    same_bits(
        mlp(x),
        SwiGLUMLP(
            w13[0],
            w2[0],
            None,
            None,
            *(b[0] for b in biases),
            limit,
            activation=activation,
            backend="reference",
        )(x),
    )
    with pytest.raises(ValueError, match="x_global_scale needs to be None"):
        SwiGLUMLP(w13[0], w2[0], torch.ones((), device=device), **options)


def test_scales_of_checkpoints_are_swizzled_at_construction(device):
    weights = [torch.randn(2 * INTER, H, device=device), torch.randn(H, INTER, device=device)]
    linear, ready = (
        [nvfp4.quantize(w, scale_layout=layout) for w in weights]
        for layout in ("linear", "swizzled")
    )
    x = torch.randn(5, H, device=device)
    same_bits(SwiGLUMLP(*linear)(x), SwiGLUMLP(*ready)(x))


def test_moe_is_its_op(device):
    h = torch.linspace(0.001, 0.002, E, device=device)
    layer = _moe(device, h_global_scale=h, swiglu_limit=1.0, expert_offset=3)
    x, weights, ids = _inputs(layer, 9, device)
    w13, w2 = layer.packed()
    assert layer.w13_global_scale.shape == (E, 2)
    want = nvfp4.moe(x, weights, ids + 3, w13, w2, None, h, expert_offset=3, swiglu_limit=1.0)
    same_bits(layer(x, weights, ids + 3), want)
    assert "experts=4, expert_offset=3, hidden=96, intermediate=64" in repr(layer)


def test_layers_without_a_gate_and_with_biases(device):
    up, down = nn.Linear(H, INTER, device=device), nn.Linear(INTER, H, device=device)
    x = torch.randn(6, H, device=device)
    mlp = SwiGLUMLP.from_float(None, up, down, activation="relu2")
    want = down(up(x).relu() ** 2)
    assert torch.cosine_similarity(mlp(x).flatten(), want.flatten(), dim=0) > 0.97
    assert mlp.w13.shape == (INTER, H // 2) and "activation=relu2, bias=True" in repr(mlp)
    weights = (up.weight[None], down.weight[None])
    biases = {"w13_bias": up.bias[None].detach(), "w2_bias": down.bias[None].detach()}
    moe = MoE.from_float(None, *weights, **biases, activation="relu2")
    ones, ids = torch.ones(6, 1, device=device), torch.zeros(6, 1, dtype=torch.int32, device=device)
    same_bits(moe(x, ones, ids), mlp(x))
    both = SwiGLUMLP.from_float(up, up, down, swiglu_limit=7.0, activation="swiglu_oai")
    gate = up(x)
    want = down(gate * torch.sigmoid(1.702 * gate) * (gate + 1))
    assert torch.cosine_similarity(both(x).flatten(), want.flatten(), dim=0) > 0.97


def test_ranks_hold_slices(device):
    whole = _moe(
        device,
        h_global_scale=torch.linspace(0.001, 0.002, E, device=device),
        w13_bias=torch.randn(E, 2 * INTER, device=device),
        w2_bias=torch.randn(E, H, device=device),
    )
    ranks = [whole.local(rank, 2) for rank in range(2)]
    assert [rank.expert_offset for rank in ranks] == [0, 2]
    assert [rank.global_num_experts for rank in ranks] == [4, 4]
    for name, tensor in whole.state_dict().items():
        same_bits(torch.cat([rank.state_dict()[name] for rank in ranks]), tensor)
    own = ranks[1].w13
    assert own.untyped_storage().nbytes() == own.nbytes  # not a view that keeps the whole
    quarter = ranks[1].local(1, 2)
    assert quarter.experts == 1 and quarter.expert_offset == 3
    assert quarter.global_num_experts == 4


@pytest.mark.parametrize(
    "call, message",
    [
        (lambda: _moe("cpu").local(0, 3), "a world_size that divides the 4 experts, got 3"),
        (lambda: _moe("cpu").local(2, 2), "a rank from 0 to 1, got 2"),
        (
            lambda: MoE(*(nvfp4.quantize_experts(torch.randn(2, 64, 64)) for _ in range(2))),
            "w13 needs N = 2I = 128",
        ),
        (
            lambda: MoE.from_float(*(torch.randn(2, 32, 64) for _ in range(3))),
            r"down \[E, H, I\], got \[\[2, 32, 64\]",
        ),
        (lambda: _moe("cpu", h_global_scale=torch.ones(3)), r"h_global_scale needs shape \[\]"),
        (
            lambda: SwiGLUMLP.from_float(
                nn.Linear(64, 64), nn.Linear(64, 64, bias=False), nn.Linear(64, 64)
            ),
            "biases in both gate and up, or in none, got one",
        ),
        (lambda: _mlp("cpu", activation="relu"), "activation needs one of 'silu', 'gelu_tanh'"),
        (lambda: Linear(nvfp4.quantize_weight(torch.randn(8, 32)), torch.ones(3)), r"shape \[8\]"),
        (lambda: deinterleave_gate_up(torch.ones(3, 4)), r"w needs shape \[\.\.\., 2I, C\]"),
    ],
)
def test_refused_at_construction(call, message):
    with pytest.raises(ValueError, match=message):
        call()


def test_interleaved_gate_and_up(device):
    """Rows in floats, packed, and their scales come out as if quantized in our order."""
    gate, up = (torch.randn(E, INTER, H, device=device) for _ in range(2))
    mixed = torch.stack([gate, up], 2).flatten(1, 2)
    ours = torch.cat([gate, up], 1)
    same_bits(deinterleave_gate_up(mixed), ours)
    p = torch.tensor(0.01, device=device)
    want, got = (nvfp4.quantize(w, p, scale_layout="linear") for w in (ours, mixed))
    same_bits(deinterleave_gate_up(got.data), want.data)
    same_bits(deinterleave_gate_up(got.scales), want.scales)


# Warming up.


def test_warmup_of_layers_without_a_compiler_does_nothing(device):
    if device == "cpu":
        assert _linear(device).warmup(64) == _mlp(device).warmup(64) == []
        assert _moe(device).warmup(64, TOP_K) == []
        assert warmup_moe([(E, H, INTER)], TOP_K, 64, device=device) == []


def test_warmup_covers_routings_and_dtypes():
    seen: list[tuple[Tensor, Tensor]] = []
    x = torch.zeros(5, 16, dtype=torch.bfloat16)
    routed(lambda x, weights, ids: seen.append((weights, ids)), 4, 2, expert_offset=8)(x)
    (even, spread), (half, one) = seen
    assert set(spread.flatten().tolist()) == {8, 9, 10, 11} and set(one.flatten().tolist()) == {8}
    assert {even.dtype, half.dtype} == {torch.float32, torch.bfloat16}
    assert {spread.dtype, one.dtype} == {torch.int32, torch.int64}


def test_workloads_of_a_mixture():
    first, second = moe_workloads(E, H, INTER, 100, TOP_K, (torch.float16,), glu=True)
    assert (first.n, first.k, first.glu) == (2 * INTER, H, True)
    assert (second.n, second.k, second.glu) == (H, INTER, False)
    assert first.max_m == second.max_m == 200 and first.experts == second.experts == E
    for shape, top_k, max_m in (((0, H, INTER), 1, 1), ((E, H, 8), 1, 1), ((E, H, INTER), 0, 1)):
        with pytest.raises(ValueError, match=r"nvfp4\.warmup"):
            warmup_moe([shape], top_k, max_m, device="cpu")


@pytest.mark.gpu
@pytest.mark.parametrize("name", LAYERS)
def test_after_warmup_a_layers_first_call_can_be_captured(name):
    layer = LAYERS[name]("cuda")
    extra = (TOP_K,) if name == "moe" else ()
    layer.warmup(200, *extra)
    for m in (1, 33, 200):
        x, *routing = _inputs(layer, m, "cuda")
        x = activations(m, H).cuda()
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph):
            out = layer(x, *routing)
        graph.replay()
        same_bits(out, layer(x, *routing))
