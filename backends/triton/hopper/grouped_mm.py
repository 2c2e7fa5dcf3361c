"""The grouped GEMM on Hopper: each expert's decoded rows times its own packed weight.

The kernel is persistent: there are as many programs as the SMs hold. Each takes every
num_programs-th tile of the tile list that the kernel before has written (groups.store_tiles), up to
its first tile without rows. It copies the next tile's operands while it multiplies one.
"""

from torch import Tensor
from triton.experimental import gluon
from triton.experimental.gluon import language as gl

from nvfp4.backends.triton.gemm.config import HOPPER_BN, K_GROUP, HopperConfig, sms
from nvfp4.backends.triton.gemm.operands import Factors, Operand
from nvfp4.backends.triton.hopper.epilogue import load_factors, prefetches_factors, store
from nvfp4.backends.triton.hopper.pipeline import (
    BN,
    LAUNCH_MAXNREG,
    ROWS,
    copy_activations,
    copy_weights,
    first_iteration,
    make_descriptors,
    multiply,
    pipeline,
    role_registers,
    wait_for_previous_kernel,
)
from nvfp4.backends.triton.runtime.launch import Launch, cdiv
from nvfp4.spec.swizzle import TILE_ROWS


@gluon.jit
def _tile(tiles, index, count):
    """Read a tile of groups.store_tiles: (expert, first row, end); no rows beyond the list."""
    inside = index < count
    return (
        gl.load(tiles + 3 * index, mask=inside, other=0),
        gl.load(tiles + 3 * index + 1, mask=inside, other=0),
        gl.load(tiles + 3 * index + 2, mask=inside, other=0),
    )


@gluon.jit
def _activations_role(pipe, a, tiles, count, N, steps):
    """The producer warp that copies A."""
    tiles_n = gl.cdiv(N, BN)
    iteration = first_iteration()
    wait_for_previous_kernel()
    index = gl.program_id(0)
    _, row, end = _tile(tiles, index // tiles_n, count)
    while row < end:
        # A tile may read rows of the next expert: their results are not stored.
        iteration = copy_activations(pipe, a, iteration, row, 0, steps)
        index += gl.num_programs(0)
        _, row, end = _tile(tiles, index // tiles_n, count)


@gluon.jit
def _weights_role(pipe, words, scales, scale_tiles, tiles, count, N, steps):
    """The producer warp that copies weights and their scales."""
    tiles_n = gl.cdiv(N, BN)
    iteration = first_iteration()
    wait_for_previous_kernel()
    index = gl.program_id(0)
    expert, row, end = _tile(tiles, index // tiles_n, count)
    while row < end:
        n = index % tiles_n
        word_row, tile_row = expert * N + n * BN, expert * scale_tiles + n
        iteration = copy_weights(pipe, words, scales, iteration, word_row, tile_row, 0, steps)
        index += gl.num_programs(0)
        expert, row, end = _tile(tiles, index // tiles_n, count)


@gluon.jit
def _multiply_tile(
    pipe, epilogue, iteration, expert, row, end, first_n, N, steps, C: gl.constexpr,
    BM: gl.constexpr, PER_SM: gl.constexpr,
):  # fmt: skip
    """Multiply and store consumer C's rows of a tile."""
    alpha, row_scale, bias, out, segment = epilogue
    alpha += expert * (N // segment)
    if bias is not None:
        bias += expert.to(gl.int64) * N
    epilogue = (alpha, row_scale, bias, out, N, 0, 1, segment)
    factors = None
    if prefetches_factors(BM, PER_SM):
        factors = load_factors(epilogue, row, first_n, end, False, BM)
    acc = multiply(pipe, iteration, steps, C, BM, PER_SM)
    store(acc, epilogue, factors, row, first_n, end, False, BM)


@gluon.jit
def _consumer_role(
    pipe, epilogue, tiles, count, N, steps, C: gl.constexpr, BM: gl.constexpr, PER_SM: gl.constexpr
):
    """A warp group that multiplies its half of each tile."""
    tiles_n = gl.cdiv(N, BN)
    iteration = first_iteration()
    wait_for_previous_kernel()
    index = gl.program_id(0)
    expert, row, end = _tile(tiles, index // tiles_n, count)
    while row < end:
        n = index % tiles_n * BN + C * ROWS
        index += gl.num_programs(0)
        next_tile = _tile(tiles, index // tiles_n, count)  # loaded during this tile
        _multiply_tile(pipe, epilogue, iteration, expert, row, end, n, N, steps, C, BM, PER_SM)
        iteration += steps
        expert, row, end = next_tile


@gluon.jit(do_not_specialize=["count", "steps"])
def _hopper_grouped_mm_kernel(
    a, words, scales, alpha, row_scale, bias, tiles, out, count, N, steps, scale_tiles, segment,
    BM: gl.constexpr, A_STAGES: gl.constexpr, B_STAGES: gl.constexpr, PER_SM: gl.constexpr,
):  # fmt: skip
    pipe = pipeline(BM, A_STAGES, B_STAGES, PER_SM)
    epilogue = (alpha, row_scale, bias, out, segment)
    gl.warp_specialize(
        [
            (_consumer_role, (pipe, epilogue, tiles, count, N, steps, 0, BM, PER_SM)),
            (_consumer_role, (pipe, epilogue, tiles, count, N, steps, 1, BM, PER_SM)),
            (_weights_role, (pipe, words, scales, scale_tiles, tiles, count, N, steps)),
            (_activations_role, (pipe, a, tiles, count, N, steps)),
        ],
        [4, 1, 1],
        role_registers(PER_SM),
    )


def plan_multiply(
    a: Tensor,
    weight: Operand,
    factors: Factors,
    tiles: Tensor,
    out: Tensor,
    config: HopperConfig,
) -> Launch:
    """Plan the launch: a float16 [R, K] (decoded), the weight's data uint16 [E, N, K/4].

    tiles: what groups.store_tiles writes for tiles of BM rows.
    """
    n, k = out.shape[1], a.shape[1]
    words, scales = weight
    operands = make_descriptors(a, words.flatten(0, 1), scales.flatten(0, 1), config)
    return Launch(
        _hopper_grouped_mm_kernel,
        (min(config.per_sm * sms(a.device), cdiv(n, HOPPER_BN) * tiles.shape[0]),),
        (
            *operands, *factors, tiles, out, tiles.shape[0], n, k // K_GROUP,
            scales.shape[1] // TILE_ROWS, n // factors.alpha.shape[1],
        ),
        {
            "BM": config.BM,
            "A_STAGES": config.a_stages,
            "B_STAGES": config.b_stages,
            "PER_SM": config.per_sm,
        },
        num_warps=4,
        num_stages=1,
        maxnreg=LAUNCH_MAXNREG[config.per_sm],
        launch_pdl=True,
    )  # fmt: skip
