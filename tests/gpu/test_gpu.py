"""What only a GPU can show: capture, size, memory, streams, no recompilation."""

import threading

import pytest
import torch
from cases import activations, same_bits

import nvfp4
from nvfp4.backends.environment import BATCH_INVARIANT
from nvfp4.backends.target import target_of
from nvfp4.backends.triton import mm
from nvfp4.backends.triton.gemm.config import COST, GROUPED
from nvfp4.calls import Mm
from nvfp4.spec.swizzle import swizzled_shape

OPS = torch.ops.nvfp4

HOPPER_TILES = [
    tile._replace(stream_k=split)
    for tile in sorted({*COST, *GROUPED.values()})
    for split in (False, True)
]


def _weight(n: int, k: int) -> nvfp4.QuantizedTensor:
    return nvfp4.quantize_weight(torch.randn(n, k, device="cuda", dtype=torch.bfloat16))


@pytest.mark.parametrize("tile", HOPPER_TILES, ids=str)
def test_what_is_copied_ahead_overwrites_nothing_that_is_still_read(tile):
    """Programs of several tiles each, again and again: the exact result, always. Of 256 rows, with
    split sums, slots of weights that were given back while these were on their way to registers
    were overwritten in every other run.
    """
    sm = target_of(torch.device("cuda")).sm
    if sm != 90:
        pytest.skip(f"needs sm_90, got sm_{sm}")
    torch.manual_seed(0)
    m, n, k = 16 * tile.BM, 4096, 7168

    def operand(rows: int) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        """Scales of 1/2, 1 and 2 make every partial sum a float32."""
        data = torch.randint(0, 256, (rows, k // 2), dtype=torch.uint8, device="cuda")
        choice = torch.randint(0, 3, swizzled_shape(rows, k), device="cuda")
        scales = torch.tensor([0x30, 0x38, 0x40], dtype=torch.uint8, device="cuda")[choice]
        one = torch.ones((), device="cuda")
        scales = scales.view(torch.float8_e4m3fn)
        return data, scales, OPS.dequantize(data, scales, one)

    (a, a_scales, x), (b, b_scales, w) = operand(m), operand(n)
    want = x.float() @ w.float().T
    alpha = torch.ones(1, 1, device="cuda")
    for _ in range(20):
        out = torch.full_like(want, float("nan"))
        call = Mm(a, b, a_scales, b_scales, alpha)
        for launch in mm.plan(call, out, sm, tile):
            launch.run()
        same_bits(out, want)


@pytest.mark.parametrize("m", [1, 17, 128, 300])
def test_linear_under_a_cuda_graph_replays_with_changed_inputs(m):
    w = _weight(256, 576)
    x = activations(m, 576).cuda()
    call = lambda: OPS.linear(x, w.data, w.scales, w.global_scale)  # noqa: E731
    call()
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        out = call()
    for _ in range(3):
        x.copy_(torch.randn_like(x) * 3)
        graph.replay()
        same_bits(out, call())


def test_after_warmup_a_first_call_can_be_captured():
    n, k = 208, 704
    nvfp4.warmup([(n, k)], max_m=200, bias=torch.float16, dtypes=(torch.float16,))
    w, bias = _weight(n, k), torch.randn(n, device="cuda").half()
    for m in (1, 33, 129, 200):
        x = activations(m, k, torch.float16).cuda()
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph):
            out = OPS.linear(x, w.data, w.scales, w.global_scale, None, bias)
        graph.replay()
        same_bits(out, OPS.linear(x, w.data, w.scales, w.global_scale, None, bias))


def test_every_quantizer_under_a_cuda_graph():
    x, p = activations(130, 576).cuda(), torch.tensor(0.01, device="cuda")

    def call() -> list[torch.Tensor]:
        data, scales = OPS.quantize(x, p)
        return [
            *OPS.quantize_dynamic(x),
            *OPS.silu_mul_quantize(x, p, 7.0),
            OPS.dequantize(data, scales, p),
            data,
            scales,
        ]

    call()
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        outs = call()
    x.copy_(torch.randn_like(x))
    graph.replay()
    for got, want in zip(outs, call(), strict=True):
        same_bits(got, want)


def test_compiled_with_cuda_graphs():
    w = _weight(128, 256)
    fn = torch.compile(
        lambda x: torch.relu(OPS.linear(x, w.data, w.scales, w.global_scale)),
        fullgraph=True,
        mode="reduce-overhead",
    )
    for _ in range(3):
        x = torch.randn(16, 256, device="cuda", dtype=torch.bfloat16)
        same_bits(fn(x), torch.relu(OPS.linear(x, w.data, w.scales, w.global_scale)))


def test_new_sizes_and_addresses_use_the_kernels_that_are_there():
    """A new number of rows, and new allocations, compile nothing (M and pointers are run-time
    values).
    """
    from nvfp4.backends.triton import mm, quantize_dynamic

    w = _weight(256, 512)
    kernels = [mm._mm_kernel, quantize_dynamic._quantize_rows_kernel]

    def compiled() -> int:
        return sum(len(kernel.device_caches[0][0]) for kernel in kernels)

    def run(m: int) -> None:
        x = torch.randn(m, 512, device="cuda", dtype=torch.bfloat16)
        got = OPS.linear(x, w.data, w.scales, w.global_scale)
        want = OPS.linear(
            x.cpu(), *(t.cpu() for t in (w.data, w.scales, w.global_scale)), backend="reference"
        )
        torch.testing.assert_close(got.cpu(), want, rtol=2**-7, atol=1e-2)

    for m in (144, 129, 1040, 1029):  # both large tiles; a multiple of 16, and not
        run(m)
    before = compiled()
    for m in (129, 200, 208, 777, 1024, 1601):
        run(m)
    assert compiled() == before


def test_more_than_2_to_the_31_elements():
    rows, k = 2**31 // 4096 + 130, 4096
    x = torch.randn(1024, k, device="cuda", dtype=torch.bfloat16).repeat(rows // 1024 + 1, 1)[:rows]
    for layout in ("linear", "swizzled"):
        data, scales, p = OPS.quantize_dynamic(x, layout)
        tail = slice(rows - rows % 1024 - 1024, rows - rows % 1024)
        want = OPS.quantize_dynamic(x[:1024], layout)
        same_bits(data[tail], want[0])
        same_bits(p[tail], want[2])
        if layout == "linear":
            same_bits(scales[tail], want[1])
            static = OPS.quantize(x, p, layout)
            same_bits(static[0], data)
        back = OPS.dequantize(data, scales, p, None, layout)
        same_bits(back[tail], OPS.dequantize(*want[:2], want[2], None, layout))
        del back
    gate_up = x.view(rows // 2, 2 * k)
    one = torch.ones((), device="cuda")
    got = OPS.silu_mul_quantize(gate_up, one)[0]
    same_bits(got[512 * 100 : 512 * 101], OPS.silu_mul_quantize(gate_up[:512], one)[0])


def test_a_gemm_output_of_more_than_2_to_the_31_elements():
    m, n, k = 2**31 // 8192 + 64, 8192, 64
    a = nvfp4.quantize_dynamic(torch.randn(m, k, device="cuda", dtype=torch.bfloat16))
    w = _weight(n, k)
    out = nvfp4.mm(a, w)
    tail = nvfp4.quantize_dynamic(a.dequantize(torch.float32)[-64:])
    torch.testing.assert_close(out[-64:], nvfp4.mm(tail, w), rtol=0.1, atol=1.0)
    small = OPS.mm(
        a.data[-64:], w.data, nvfp4.swizzle_scales(a.linear_scales()[-64:]), w.scales,
        a.global_scale[-64:, None] * w.global_scale,
    )  # fmt: skip
    same_bits(out[-64:], small)


def test_quantizers_allocate_their_outputs_alone():
    x = torch.randn(4096, 8192, device="cuda", dtype=torch.bfloat16)
    p = nvfp4.global_scale(x)
    for call in (
        lambda: OPS.quantize(x, p),
        lambda: OPS.quantize_dynamic(x),
        lambda: OPS.silu_mul_quantize(x, p),
    ):
        call()
        torch.cuda.synchronize()
        torch.cuda.reset_peak_memory_stats()
        before = torch.cuda.memory_allocated()
        out = call()
        held = sum(-(-t.nbytes // 512) * 512 for t in out)
        assert torch.cuda.max_memory_allocated() - before <= held + 4096


def test_no_synchronization_with_the_host():
    w = _weight(256, 576)
    x = activations(33, 576).cuda()
    p = nvfp4.global_scale(x)
    OPS.linear(x, w.data, w.scales, w.global_scale)
    OPS.linear(x, w.data, w.scales, w.global_scale, p)
    torch.cuda.synchronize()
    torch.cuda.set_sync_debug_mode("error")
    try:
        OPS.linear(x, w.data, w.scales, w.global_scale)
        OPS.linear(x, w.data, w.scales, w.global_scale, p)
        nvfp4.global_scale(x)
    finally:
        torch.cuda.set_sync_debug_mode("default")


def test_two_threads_and_streams():
    w = _weight(256, 576)
    x = [activations(m, 576).cuda() for m in (7, 130)]
    want = [OPS.linear(x_, w.data, w.scales, w.global_scale) for x_ in x]
    torch.cuda.synchronize()
    failures: list[BaseException] = []

    def work(index: int) -> None:
        try:
            with torch.cuda.stream(torch.cuda.Stream()):
                for _ in range(50):
                    same_bits(OPS.linear(x[index], w.data, w.scales, w.global_scale), want[index])
        except BaseException as failure:  # noqa: BLE001
            failures.append(failure)

    threads = [threading.Thread(target=work, args=(i % 2,)) for i in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not failures, failures[0]


@pytest.mark.skipif(torch.cuda.device_count() < 2, reason="needs 2 GPUs")
def test_tensors_on_a_gpu_that_is_not_the_current_one():
    w, x = _weight(256, 576), activations(33, 576).cuda()
    want = OPS.linear(x, w.data, w.scales, w.global_scale)
    w, x = w.to("cuda:1"), x.to("cuda:1")
    assert torch.cuda.current_device() == 0
    same_bits(OPS.linear(x, w.data, w.scales, w.global_scale), want)


@pytest.mark.parametrize("m", [1, 2, 16, 17, 32, 33, 64, 65, 128, 200])
@pytest.mark.parametrize("n, k", [(6144, 3584), (9216, 3584), (576, 576)])
def test_every_tile_at_real_sizes(m, n, k, monkeypatch):
    """Against the product of the dequantized operands in float64; the same bits at every call, and
    with sums that are not split a token's whatever comes with it.
    """
    w = _weight(n, k)
    x = activations(m, k).cuda()
    q = nvfp4.quantize_dynamic(x)
    exact = q.dequantize(torch.float32).double() @ w.dequantize(torch.float32).double().T
    for invariant in ("0", "1"):
        monkeypatch.setenv(BATCH_INVARIANT, invariant)
        got = OPS.linear(x, w.data, w.scales, w.global_scale)
        assert (got - exact).norm() / exact.norm() < 3e-3
        same_bits(OPS.linear(x, w.data, w.scales, w.global_scale), got)
        same_bits(nvfp4.mm(q, w, out_dtype=x.dtype), got)
    for token in range(0, m, 37):
        alone = OPS.linear(x[token : token + 1], w.data, w.scales, w.global_scale)
        same_bits(alone, got[token : token + 1])


@pytest.mark.parametrize("n, k", [(6144, 7168), (512, 576), (500, 640)])
def test_every_tile_that_does_not_split_gives_the_same_bits(n, k):
    """In float32, on activations with outliers: no token's bits tell how many came with it."""
    from nvfp4.backends.target import target_of
    from nvfp4.backends.triton.gemm.config import choose_config, choose_grouped_config
    from nvfp4.backends.triton.mm import plan

    w, x = _weight(n, k), nvfp4.quantize_dynamic(activations(200, k).cuda() / 1024)
    sm = target_of(w.device).sm
    tokens = (1, 9, 17, 33, 65, 129, 257, 513, 4096)
    widths = (4096, 9216, 16384)
    configs = {choose_config(m, width, k, sm, False) for m in tokens for width in widths}
    configs |= {choose_grouped_config(8 * m, 8, k, sm) for m in tokens}
    alpha = w.global_scale.view(1, 1)
    call = Mm(x.data, w.data, x.scales, w.scales, alpha, x.global_scale)
    first = None
    for config in sorted(configs, key=str):
        out = torch.full((200, n), float("nan"), device="cuda")
        for launch in plan(call, out, sm, config):
            launch.run()
        first = out if first is None else first
        same_bits(out, first)
