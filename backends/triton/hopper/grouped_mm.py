"""The grouped GEMM on Hopper: each expert's rows, decoded, times its own weight as it is stored.

There are as many programs as the SMs hold. Each has every so many-th tile of a schedule that a
kernel before has made, up to where the schedule ends, and copies the next one's operands while it
multiplies one.
"""

from torch import Tensor
from triton.experimental import gluon
from triton.experimental.gluon import language as gl

from nvfp4.backends.triton.gemm.config import HOPPER_BN, K_GROUP, HopperConfig, sms
from nvfp4.backends.triton.hopper.epilogue import early, load_factors, store
from nvfp4.backends.triton.hopper.pipeline import (
    BN,
    FIRST_REGISTERS,
    ROWS,
    await_previous,
    copy_activations,
    copy_weights,
    describe,
    first_place,
    multiply,
    pipeline,
    registers_of_roles,
)
from nvfp4.backends.triton.runtime.launch import Launch, cdiv
from nvfp4.spec.swizzle import TILE_ROWS


@gluon.jit
def _tile(tiles, index, count):
    """groups.store_tiles' index-th: (expert, first row, end), no rows beyond the last."""
    inside = index < count
    return (
        gl.load(tiles + 3 * index, mask=inside, other=0),
        gl.load(tiles + 3 * index + 1, mask=inside, other=0),
        gl.load(tiles + 3 * index + 2, mask=inside, other=0),
    )


@gluon.jit
def _activations_role(pipe, a, tiles, count, N, steps):
    tiles_n = gl.cdiv(N, BN)
    place = first_place()
    await_previous()
    index = gl.program_id(0)
    _, row, end = _tile(tiles, index // tiles_n, count)
    while row < end:
        # Rows beyond the expert's are another's: what they give is not stored.
        place = copy_activations(pipe, a, place, row, 0, steps)
        index += gl.num_programs(0)
        _, row, end = _tile(tiles, index // tiles_n, count)


@gluon.jit
def _weights_role(pipe, words, scales, scale_tiles, tiles, count, N, steps):
    tiles_n = gl.cdiv(N, BN)
    place = first_place()
    await_previous()
    index = gl.program_id(0)
    expert, row, end = _tile(tiles, index // tiles_n, count)
    while row < end:
        n = index % tiles_n
        word_row, tile_row = expert * N + n * BN, expert * scale_tiles + n
        place = copy_weights(pipe, words, scales, place, word_row, tile_row, 0, steps)
        index += gl.num_programs(0)
        expert, row, end = _tile(tiles, index // tiles_n, count)


@gluon.jit
def _multiply_tile(
    pipe, ends, place, expert, row, end, first_n, N, steps, C: gl.constexpr, BM: gl.constexpr,
    PER_SM: gl.constexpr,
):  # fmt: skip
    """Consumer C's rows of a tile, from `place` in the rings on."""
    alpha, row_scale, bias, out, segment = ends
    alpha += expert * (N // segment)
    if bias is not None:
        bias += expert.to(gl.int64) * N
    ends = (alpha, row_scale, bias, out, N, 0, 1, segment)
    factors = None
    if early(BM, PER_SM):
        factors = load_factors(ends, row, first_n, end, False, BM)
    acc = multiply(pipe, place, steps, C, BM, PER_SM)
    store(acc, ends, factors, row, first_n, end, False, BM)


@gluon.jit
def _consumer_role(
    pipe, ends, tiles, count, N, steps, C: gl.constexpr, BM: gl.constexpr, PER_SM: gl.constexpr
):
    tiles_n = gl.cdiv(N, BN)
    place = first_place()
    await_previous()
    index = gl.program_id(0)
    expert, row, end = _tile(tiles, index // tiles_n, count)
    while row < end:
        n = index % tiles_n * BN + C * ROWS
        index += gl.num_programs(0)
        next_tile = _tile(tiles, index // tiles_n, count)  # known when this one is done
        _multiply_tile(pipe, ends, place, expert, row, end, n, N, steps, C, BM, PER_SM)
        place += steps
        expert, row, end = next_tile


@gluon.jit(do_not_specialize=["count", "steps"])
def _hopper_grouped_mm_kernel(
    a, words, scales, alpha, row_scale, bias, tiles, out, count, N, steps, scale_tiles, segment,
    BM: gl.constexpr, A_SLOTS: gl.constexpr, B_SLOTS: gl.constexpr, PER_SM: gl.constexpr,
):  # fmt: skip
    pipe = pipeline(BM, A_SLOTS, B_SLOTS)
    ends = (alpha, row_scale, bias, out, segment)
    gl.warp_specialize(
        [
            (_consumer_role, (pipe, ends, tiles, count, N, steps, 0, BM, PER_SM)),
            (_consumer_role, (pipe, ends, tiles, count, N, steps, 1, BM, PER_SM)),
            (_weights_role, (pipe, words, scales, scale_tiles, tiles, count, N, steps)),
            (_activations_role, (pipe, a, tiles, count, N, steps)),
        ],
        [4, 1, 1],
        registers_of_roles(PER_SM),
    )


def plan_multiply(
    a: Tensor,
    words: Tensor,
    scales: Tensor,
    alpha: Tensor,
    row_scale: Tensor | None,
    bias: Tensor | None,
    tiles: Tensor,
    out: Tensor,
    config: HopperConfig,
) -> Launch:
    """a float16 [R, K] decoded, words [E, N, K/4], scales as bytes [E, Np, Kp], alpha float32 [E,
    S], row_scale float32 [R], bias [E, N], tiles groups.store_tiles' of BM rows, out [R, N].
    """
    n, k = out.shape[1], a.shape[1]
    operands = describe(a, words.flatten(0, 1), scales.flatten(0, 1), config)
    return Launch(
        _hopper_grouped_mm_kernel,
        (min(config.per_sm * sms(a.device), cdiv(n, HOPPER_BN) * tiles.shape[0]),),
        (
            *operands, alpha, row_scale, bias, tiles, out, tiles.shape[0], n, k // K_GROUP,
            scales.shape[1] // TILE_ROWS, n // alpha.shape[1],
        ),
        {
            "BM": config.BM,
            "A_SLOTS": config.a_slots,
            "B_SLOTS": config.b_slots,
            "PER_SM": config.per_sm,
        },
        num_warps=4,
        num_stages=1,
        most_registers=FIRST_REGISTERS[config.per_sm],
        overlaps=True,
    )  # fmt: skip
