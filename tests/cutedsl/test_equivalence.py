"""The backends on the same packed tensors: equal to the bit where float32 sums are exact, within
the derived bound of each other where they are not.

sm_100 runs emulated: its code, its tensor maps, its launches.
"""

from functools import cache
from itertools import cycle

import pytest
import torch
from bounds import gemm_bound
from cases import Shape, activations, same_bits, skip_if_it_cannot
from tile_problems import ALL, eighths, exact_operands, tile_call, tile_problem

import nvfp4
from nvfp4.backends.cutedsl.gemm.choose import B200_SMS
from nvfp4.backends.cutedsl.gemm.config import Tile
from nvfp4.backends.cutedsl.gemm.launch import plan, run_or_emulate
from nvfp4.calls import Mm
from nvfp4.spec.format import FLOAT_DTYPES
from nvfp4.spec.quantize import decode

OPS = torch.ops.nvfp4

emulated = pytest.mark.usefixtures("emulated")
others = pytest.mark.parametrize(
    "other",
    [
        pytest.param("cutedsl", marks=pytest.mark.emulated),
        pytest.param("triton", marks=pytest.mark.interpreted),
    ],
)

TOKENS = (1, 7, 16, 64, 127, 128, 129, 300)
SHAPES = [
    *(Shape(m, 136, 320) for m in TOKENS),
    *(Shape(24, 72, k) for k in (16, 32, 48, 80, 240, 256, 272, 512, 576, 1104, 4096)),
    Shape(128, 128, 128),
    Shape(256, 256, 256),
    Shape(328, 264, 288),
    Shape(70, 132, 80),
    Shape(130, 33, 64),
]
SERVED = [Shape(17, 1536, 3584), Shape(3, 7168, 2048)]
"""Few tokens on the weights that the change log's serving project had: a quarter of the first's
rows, for more of them are the same tiles again.
"""


@cache
def quantized(shape: Shape) -> tuple[nvfp4.QuantizedTensor, nvfp4.QuantizedTensor]:
    torch.manual_seed(shape.m + shape.n + shape.k)
    a = nvfp4.quantize_dynamic(activations(shape.m, shape.k), backend="reference")
    return a, nvfp4.quantize(activations(shape.n, shape.k), backend="reference")


def run(backend: str, shape: Shape, exact: bool, alpha, bias=None, dtype=torch.bfloat16):
    skip_if_it_cannot(backend)
    a, b = exact_operands(shape) if exact else quantized(shape)
    return OPS.mm(a.data, b.data, a.scales, b.scales, alpha, None, bias, dtype, backend)


@others
@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_equal_where_sums_are_exact(other, shape):
    alpha = torch.tensor(0.25)
    same_bits(run(other, shape, True, alpha), run("reference", shape, True, alpha))


@emulated
@pytest.mark.parametrize("shape", SERVED, ids=str)
def test_equal_at_served_shapes(shape):
    alpha, bias = torch.tensor(2.0**-9), torch.randn(shape.n, dtype=torch.bfloat16)
    got = run("cutedsl", shape, True, alpha, bias)
    same_bits(got, run("reference", shape, True, alpha, bias))


@others
@pytest.mark.parametrize("shape, dtype", list(zip(SHAPES[::3], cycle(FLOAT_DTYPES))), ids=str)
def test_within_the_bound_for_any_scales(other, shape, dtype):
    a, b = quantized(shape)
    alpha = torch.full((shape.m, 1), 1e-4)
    x = decode(a.data, a.linear_scales()).double()
    w = decode(b.data, b.linear_scales()).double()
    exact = (x @ w.T) * alpha.double()
    bound = gemm_bound(x, w, alpha.double(), exact, dtype)
    error = (run(other, shape, False, alpha, dtype=dtype).double() - exact).abs()
    assert (error <= bound).all(), f"error / bound = {(error / bound).nan_to_num(0).max()}"


FORMS = {
    "one": lambda m, n: torch.tensor(0.5),
    "rows": lambda m, n: eighths(m),
    "segments": lambda m, n: eighths(1, 2),
    "narrow segments": lambda m, n: eighths(1, n // 4),
    "matrix": lambda m, n: eighths(m, 4),
}


@emulated
@pytest.mark.parametrize(
    "form, tokens, dtype",
    [
        (form, tokens, FLOAT_DTYPES[(i + j) % 3])
        for i, form in enumerate(FORMS)
        for j, tokens in enumerate((9, 150))
    ],
    ids=str,
)
def test_every_epilogue(form, tokens, dtype):
    """Stored by elements and by TMA, in each dtype."""
    shape = Shape(tokens, 264, 320)
    alpha, bias = FORMS[form](shape.m, shape.n), eighths(shape.n).to(dtype)
    want = run("reference", shape, True, alpha, bias, dtype)
    same_bits(run("cutedsl", shape, True, alpha, bias, dtype), want)


def run_tile(tile: Tile, shape: Shape, sms: int) -> None:
    call = tile_call(tile, shape)
    got = torch.empty(shape.m, shape.n, dtype=torch.bfloat16)
    run_or_emulate(plan(call, got, tile, sms))
    folded = call.alpha if call.row_scale is None else call.alpha * call.row_scale.view(-1, 1)
    same_bits(got, run("reference", shape, True, folded, call.bias))


@emulated
@pytest.mark.parametrize("tile", ALL, ids=str)
def test_every_tile(tile):
    run_tile(tile, tile_problem(tile), sms=2 * tile.cluster)


@emulated
@pytest.mark.parametrize("group_m", [1, 2, 3, 5])
@pytest.mark.parametrize("tile", [Tile(128, 64), Tile(256, 192, 2)], ids=str)
def test_tiles_are_rasterized_in_groups_of_rows(tile, group_m):
    """Five rows of tiles, in groups that divide them or not; each tile once."""
    rows, columns = tile.cluster_tile
    shape = Shape(5 * rows - 8, 2 * columns + 8, 64)
    a, b = exact_operands(shape)
    alpha, got = torch.tensor([[0.5]]), torch.empty(shape.m, shape.n, dtype=torch.bfloat16)
    launch = plan(Mm(a.data, b.data, a.scales, b.scales, alpha), got, tile, 2 * tile.cluster)
    run_or_emulate(launch._replace(sizes=(*launch.sizes[:-1], group_m)))
    same_bits(got, run("reference", shape, True, alpha))


@emulated
def test_batch_invariance_can_be_asked_for(monkeypatch):
    """A token alone, among 8 and among 80, with scales for which the order of summation shows."""
    monkeypatch.setenv("NVFP4_BATCH_INVARIANT", "1")
    shape = Shape(80, 128, 4096)
    a, b = quantized(shape)

    def tokens(m: int) -> torch.Tensor:
        alpha, scales = torch.full((m, 1), 1e-4), nvfp4.swizzle_scales(a.linear_scales()[:m])
        operands = a.data[:m], b.data, scales, b.scales, alpha
        return OPS.mm(*operands, out_dtype=torch.float32, backend="cutedsl")

    together = tokens(80)
    for m in (1, 8):
        same_bits(tokens(m), together[:m])
    split = torch.empty(8, 128)
    scales = nvfp4.swizzle_scales(a.linear_scales()[:8])
    alpha = torch.full((8, 1), 1e-4)
    tile = Tile(128, 8, split_k=4, swapped=True)
    run_or_emulate(plan(Mm(a.data[:8], b.data, scales, b.scales, alpha), split, tile, B200_SMS))
    assert (split != together[:8]).any(), "a split sum differs in its last bits"


@emulated
def test_one_compiled_kernel_serves_any_allocation_and_size(monkeypatch, tmp_path):
    """Three allocations, three sizes, one compilation: nothing of a call is baked in."""
    from nvfp4.backends.cutedsl.runtime import compile as compiler
    from nvfp4.backends.cutedsl.runtime import emulated

    compilations = []
    compile_ = compiler._compile
    monkeypatch.setenv("NVFP4_CACHE_DIR", str(tmp_path))
    monkeypatch.setattr(
        compiler, "_compile", lambda *args: compilations.append(args) or compile_(*args)
    )
    emulated._loaded.cache_clear()
    keep = []
    for m, n, k in ((130, 264, 288), (7, 136, 1040), (515, 72, 64)):
        keep.append(torch.empty(4096 * len(keep) + 7, dtype=torch.uint8))  # other addresses
        run_tile(Tile(128, 128), Shape(m, n, k), sms=3)
    assert len(compilations) == 1
