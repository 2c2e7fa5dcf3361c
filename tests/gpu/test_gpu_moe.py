"""What only a GPU can show of a mixture of experts: capture, replay with another routing, sizes,
synchronization, threads.
"""

import os
import subprocess
import sys
import threading
from pathlib import Path

import pytest
import torch
import triton
import triton.language as tl
from bounds import gemm_bound
from cases import activations, same_bits
from torch import Tensor

import nvfp4
from nvfp4.layers import MoE
from nvfp4.spec.quantize import decode

TESTS = Path(__file__).parents[1]
FOUND = (TESTS.parent, TESTS / "support", Path(__file__).parent)
ENVIRONMENT = os.environ | {"PYTHONPATH": os.pathsep.join(map(str, FOUND))}
H, INTERMEDIATE, EXPERTS, TOP_K = 576, 320, 24, 4


def layer(experts: int = EXPERTS, hidden: int = H, intermediate: int = INTERMEDIATE) -> MoE:
    gate, up = torch.randn(2, experts, intermediate, hidden, device="cuda") / hidden**0.5
    return MoE.from_float(gate, up, torch.randn(experts, hidden, intermediate, device="cuda") / 16)


def inputs(tokens: int, experts: int = EXPERTS, hidden: int = H) -> tuple[Tensor, Tensor, Tensor]:
    x = torch.randn(tokens, hidden, device="cuda", dtype=torch.bfloat16)
    ids = torch.rand(tokens, experts, device="cuda").argsort(1)[:, :TOP_K].int()
    return x, torch.rand(tokens, TOP_K, device="cuda"), ids


@pytest.mark.parametrize("tokens", [1, 40, 300])
def test_a_graph_replays_with_other_tokens_and_another_routing(tokens):
    moe = layer()
    static = inputs(tokens)
    moe(*static)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        out = moe(*static)
    for routing in ("uniform", "one", "none"):
        for old, new in zip(static, inputs(tokens), strict=True):
            old.copy_(new)
        if routing != "uniform":
            static[2].fill_(EXPERTS - 1 if routing == "one" else -1)
        graph.replay()
        same_bits(out, moe(*static))


def test_after_warmup_a_first_call_can_be_captured():
    moe = layer(hidden=592, intermediate=304)
    moe.warmup(300, TOP_K)
    for tokens in (1, 2, 16, 31, 128, 144, 256, 300):
        static = inputs(tokens, hidden=592)
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph):
            out = moe(*static)
        graph.replay()
        same_bits(out, moe(*static))


COLD = """
import torch
from test_gpu_moe import inputs, layer

moe, static = layer(), inputs(7)
try:
    with torch.cuda.graph(torch.cuda.CUDAGraph()):
        moe(*static)
except RuntimeError as error:
    print(error)
torch.cuda.synchronize()
assert torch.isfinite(moe(*static)).all(), "and it did no harm"
"""


def test_a_first_call_under_capture_says_how_to_warm_up():
    """In a process that has no kernel yet."""
    done = subprocess.run(
        [sys.executable, "-c", COLD], cwd=TESTS, env=ENVIRONMENT, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr[-2000:]
    assert "would be compiled while a CUDA graph is captured; call nvfp4.warmup" in done.stdout


def test_no_synchronization_with_the_host():
    moe, static = layer(), inputs(33)
    moe(*static)
    torch.cuda.synchronize()
    torch.cuda.set_sync_debug_mode("error")
    try:
        moe(*static)
    finally:
        torch.cuda.set_sync_debug_mode("default")


def test_a_compiled_block_with_its_router_and_cuda_graphs():
    moe, router = layer(), torch.randn(EXPERTS, H, device="cuda", dtype=torch.bfloat16)

    def block(x: Tensor) -> Tensor:
        weights, ids = torch.topk(torch.softmax((x @ router.T).float(), -1), TOP_K)
        return x + moe(x, weights, ids)

    compiled = torch.compile(block, fullgraph=True, mode="reduce-overhead")
    for _ in range(4):
        x = torch.randn(16, H, device="cuda", dtype=torch.bfloat16)
        torch.testing.assert_close(compiled(x), block(x), rtol=2**-5, atol=2**-6)


def test_two_threads_and_streams():
    moe = layer()
    calls = [inputs(7), inputs(130)]
    want = [moe(*call) for call in calls]
    torch.cuda.synchronize()
    failures: list[BaseException] = []

    def work(index: int) -> None:
        try:
            with torch.cuda.stream(torch.cuda.Stream()):
                for _ in range(30):
                    same_bits(moe(*calls[index]), want[index])
        except BaseException as failure:  # noqa: BLE001
            failures.append(failure)

    threads = [threading.Thread(target=work, args=(i % 2,)) for i in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not failures, failures[0]


SERVED = [(7168, 2048, 32, 8), (4096, 2048, 256, 6), (7168, 3072, 16, 8)]
"""Hidden, intermediate, local experts, top_k of models that are served."""


@pytest.mark.parametrize("hidden, intermediate, experts, top_k", SERVED)
@pytest.mark.parametrize("tokens", [1, 16, 130, 2000])
def test_grouped_mm_at_real_sizes(hidden, intermediate, experts, top_k, tokens):
    """A sample of outputs against float64, and each token alone with the same bits."""
    x = activations(tokens, hidden).cuda() / 1024
    ids = torch.rand(tokens, experts, device="cuda").argsort(1)[:, :top_k]
    w13 = nvfp4.quantize_experts(torch.randn(experts, 2 * intermediate, hidden, device="cuda"), 2)
    rows, positions = nvfp4.moe_dispatch(x, ids, experts)
    out = nvfp4.grouped_mm(rows, w13, out_dtype=torch.float32)
    linear, offsets = rows.linear_scales(), rows.offsets.tolist()
    used = [e for e in range(experts) if offsets[e] < offsets[e + 1]]
    for e in used[:: max(1, len(used) // 4)]:
        part, w = slice(offsets[e], offsets[e + 1]), w13[e]
        values = decode(rows.data[part], linear[part]).double()
        columns = slice(0, 128)
        weights = decode(w.data, w.linear_scales())[columns].double()
        alpha = (rows.row_scale[part, None] * w.global_scale[:1]).double()
        exact = values @ weights.T * alpha
        bound = gemm_bound(values, weights, alpha, exact, torch.float32)
        assert ((out[part, columns].double() - exact).abs() <= bound).all(), e
    for token in range(0, tokens, 371):
        alone, where = nvfp4.moe_dispatch(x[token, None], ids[token, None], experts)
        got = nvfp4.grouped_mm(alone, w13, out_dtype=torch.float32)
        same_bits(got[where[0].long()], out[positions[token].long()])


def test_more_rows_than_a_launch_has_programs_in_a_dimension():
    """More than 65,535 tokens, all of one expert."""
    x = torch.randn(512, 64, device="cuda", dtype=torch.bfloat16).repeat(140, 1)
    ids = torch.full((len(x), 1), 3, device="cuda")
    w13 = nvfp4.quantize_experts(torch.randn(4, 64, 64, device="cuda"), 2)
    w2 = nvfp4.quantize_experts(torch.randn(4, 64, 32, device="cuda"))
    ones = torch.ones(len(x), 1, device="cuda")
    out = nvfp4.moe(x, ones, ids, w13, w2)
    same_bits(out[-512:], nvfp4.moe(x[:512], ones[:512], ids[:512], w13, w2))


@triton.jit
def _quotients(a, b, fast, exact, C: tl.constexpr):
    at = tl.program_id(0) * C + tl.arange(0, C)
    x, y = tl.load(a + at), tl.load(b + at)
    text: tl.constexpr = """{
        .reg .f32 r, e, q, n;
        rcp.approx.ftz.f32 r, $2;
        neg.f32 n, $2;
        fma.rn.f32 e, n, r, 0f3F800000;
        fma.rn.f32 r, r, e, r;
        mul.rn.f32 q, $1, r;
        fma.rn.f32 e, n, q, $1;
        fma.rn.f32 $0, e, r, q;
    }"""
    quotient = tl.inline_asm_elementwise(text, "=f,f,f", [x, y], tl.float32, True, 1)
    tl.store(fast + at, quotient)
    tl.store(exact + at, tl.div_rn(x, y))


def test_the_fused_kernels_division_is_the_exact_one():
    """What sm_100's epilogue does two at a time, where nothing is near the ends of float32's range:
    here on this GPU's approximate reciprocal, on gates and 1 + 2^t.
    """
    size = 1 << 26
    for _ in range(4):
        gate = torch.randn(size, device="cuda") * 2.0 ** torch.randint(
            -40, 40, (size,), device="cuda"
        )
        below = 1 + torch.exp2(torch.rand(size, device="cuda") * 120 - 60)
        fast, exact = torch.empty_like(gate), torch.empty_like(gate)
        _quotients[(size // 1024,)](gate, below, fast, exact, 1024)
        same_bits(fast, exact)
