"""The GEMM on Hopper: out = (A B^T) * alpha + bias, with A decoded and B packed.

The kernel is persistent: there are as many programs as the SMs hold. Each either takes every
num_programs-th tile, or an even share of all steps of all tiles (stream_k.py).
"""

from torch import Tensor
from triton.experimental import gluon
from triton.experimental.gluon import language as gl

from nvfp4.backends.triton.gemm.config import K_GROUP, HopperConfig
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
from nvfp4.backends.triton.hopper.stream_k import (
    Schedule,
    next_tile,
    reduce_partials,
    steps_of_program,
    store_partial,
)
from nvfp4.backends.triton.runtime.launch import Launch

GROUP_M = 8
"""Tiles of M that follow each other on one tile of N, while the L2 cache holds its weights."""


@gluon.jit
def _rasterize(tile, tiles_m, tiles_n, GROUP_M: gl.constexpr):
    """Map a tile's number to its tile indices (m, n), in groups of GROUP_M tiles of M."""
    group = tile // (GROUP_M * tiles_n)
    rows = gl.minimum(tiles_m - group * GROUP_M, GROUP_M)
    within = tile % (GROUP_M * tiles_n)
    return group * GROUP_M + within % rows, within // rows


# ---- roles ----------------------------------------------------------------------------------


@gluon.jit
def _activations_role(
    pipe, a, size, BM: gl.constexpr, STREAM_K: gl.constexpr, GROUP_M: gl.constexpr
):
    """The producer warp that copies A."""
    M, N, steps = size
    tiles_m, tiles_n = gl.cdiv(M, BM), gl.cdiv(N, BN)
    begin, end = steps_of_program(tiles_m * tiles_n, steps, STREAM_K)
    wait_for_previous_kernel()
    iteration = first_iteration()
    while begin < end:
        tile, step, count, begin, end = next_tile(begin, end, steps, STREAM_K)
        m, _ = _rasterize(tile, tiles_m, tiles_n, GROUP_M)
        iteration = copy_activations(pipe, a, iteration, m * BM, step, count)


@gluon.jit
def _weights_role(
    pipe, words, scales, size, BM: gl.constexpr, STREAM_K: gl.constexpr, GROUP_M: gl.constexpr
):
    """The producer warp that copies weights and their scales."""
    M, N, steps = size
    tiles_m, tiles_n = gl.cdiv(M, BM), gl.cdiv(N, BN)
    begin, end = steps_of_program(tiles_m * tiles_n, steps, STREAM_K)
    iteration = first_iteration()
    while begin < end:
        tile, step, count, begin, end = next_tile(begin, end, steps, STREAM_K)
        _, n = _rasterize(tile, tiles_m, tiles_n, GROUP_M)
        iteration = copy_weights(pipe, words, scales, iteration, n * BN, n, step, count)


@gluon.jit
def _multiply_tile(
    pipe, epilogue, partials, size, iteration, tile, step, count, C: gl.constexpr,
    ALPHA_OF_ROWS: gl.constexpr, BM: gl.constexpr, STREAM_K: gl.constexpr, GROUP_M: gl.constexpr,
    PER_SM: gl.constexpr,
):  # fmt: skip
    """Multiply consumer C's rows over `count` steps of a tile; store the partial sum or result."""
    M, N, steps = size
    tiles_m, tiles_n = gl.cdiv(M, BM), gl.cdiv(N, BN)
    factors = None
    if prefetches_factors(BM, PER_SM, ALPHA_OF_ROWS, STREAM_K):
        m, n = _rasterize(tile, tiles_m, tiles_n, GROUP_M)
        factors = load_factors(epilogue, m * BM, n * BN + C * ROWS, M, ALPHA_OF_ROWS, BM)
    acc = multiply(pipe, iteration, count, C, BM, PER_SM)
    if STREAM_K and step + count < steps:
        store_partial(acc, partials, tile, C, BM)
    else:
        if STREAM_K and step > 0:
            acc = reduce_partials(acc, partials, tile, tiles_m * tiles_n, steps, C, BM)
        m, n = _rasterize(tile, tiles_m, tiles_n, GROUP_M)
        store(acc, epilogue, factors, m * BM, n * BN + C * ROWS, M, ALPHA_OF_ROWS, BM)


@gluon.jit
def _consumer_role(
    pipe, epilogue, partials, size, C: gl.constexpr, ALPHA_OF_ROWS: gl.constexpr, BM: gl.constexpr,
    STREAM_K: gl.constexpr, GROUP_M: gl.constexpr, PER_SM: gl.constexpr,
):  # fmt: skip
    """A warp group that multiplies its half of each tile."""
    M, N, steps = size
    begin, end = steps_of_program(gl.cdiv(M, BM) * gl.cdiv(N, BN), steps, STREAM_K)
    iteration = first_iteration()
    wait_for_previous_kernel()
    while begin < end:
        tile, step, count, begin, end = next_tile(begin, end, steps, STREAM_K)
        _multiply_tile(
            pipe, epilogue, partials, size, iteration, tile, step, count, C, ALPHA_OF_ROWS, BM,
            STREAM_K, GROUP_M, PER_SM,
        )  # fmt: skip
        iteration += count


@gluon.jit(do_not_specialize=["M", "steps", "row_scale_stride"])
def _hopper_mm_kernel(
    a, words, scales, alpha, row_scale, bias, out, partial_sums, tile_counters, M, N, steps,
    alpha_stride, row_scale_stride, segment, ALPHA_OF_ROWS: gl.constexpr, BM: gl.constexpr,
    A_STAGES: gl.constexpr, B_STAGES: gl.constexpr, STREAM_K: gl.constexpr, PER_SM: gl.constexpr,
    GROUP_M: gl.constexpr,
):  # fmt: skip
    pipe = pipeline(BM, A_STAGES, B_STAGES, PER_SM)
    size = (M, N, steps)
    epilogue = (alpha, row_scale, bias, out, N, alpha_stride, row_scale_stride, segment)
    partials = (partial_sums, tile_counters)
    gl.warp_specialize(
        [
            (_consumer_role,
             (pipe, epilogue, partials, size, 0, ALPHA_OF_ROWS, BM, STREAM_K, GROUP_M, PER_SM)),
            (_consumer_role,
             (pipe, epilogue, partials, size, 1, ALPHA_OF_ROWS, BM, STREAM_K, GROUP_M, PER_SM)),
            (_weights_role, (pipe, words, scales, size, BM, STREAM_K, GROUP_M)),
            (_activations_role, (pipe, a, size, BM, STREAM_K, GROUP_M)),
        ],
        [4, 1, 1],
        role_registers(PER_SM),
    )  # fmt: skip


def plan_multiply(
    a: Tensor,
    weight: Operand,
    factors: Factors,
    out: Tensor,
    config: HopperConfig,
    schedule: Schedule,
) -> Launch:
    """Plan the launch: a float16 [M, K] (decoded), the weight's data uint16 [N, K/4]."""
    (m, n), k = out.shape, a.shape[1]
    alpha, row_scale, bias = factors
    return Launch(
        _hopper_mm_kernel,
        (schedule.programs,),
        (
            *make_descriptors(a, *weight, config), alpha, row_scale, bias, out,
            schedule.partial_sums, schedule.tile_counters, m, n, k // K_GROUP, alpha.shape[1],
            int(row_scale is not None and row_scale.numel() > 1), n // alpha.shape[1],
        ),
        {
            "ALPHA_OF_ROWS": alpha.shape[0] > 1,
            "BM": config.BM,
            "A_STAGES": config.a_stages,
            "B_STAGES": config.b_stages,
            "STREAM_K": config.stream_k,
            "PER_SM": config.per_sm,
            "GROUP_M": GROUP_M,
        },
        num_warps=4,
        num_stages=1,
        maxnreg=LAUNCH_MAXNREG[config.per_sm],
        launch_pdl=True,
    )  # fmt: skip
