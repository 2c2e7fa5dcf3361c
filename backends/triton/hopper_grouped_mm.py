"""The grouped GEMM on Hopper: each expert's rows, decoded, times its own weight as it is stored.

There are as many programs as SMs. Each has every so many-th tile of a schedule that a kernel before
has made, and copies the next one's operands while it multiplies one.
"""

from torch import Tensor
from triton.experimental import gluon
from triton.experimental.gluon import language as gl

from nvfp4.backends.triton.hopper import (
    BN,
    CONSUMERS_REGISTERS,
    COPIERS_REGISTERS,
    ROWS,
    await_previous,
    copy_activations,
    copy_weights,
    describe,
    first_place,
    multiply,
    pipeline,
    store,
)
from nvfp4.backends.triton.launch import Launch, cdiv
from nvfp4.backends.triton.mm_config import HOPPER_BN, K_GROUP, HopperConfig, sms
from nvfp4.spec.swizzle import TILE_ROWS


@gluon.jit
def _tile(tiles, index):
    """groups.store_tiles' index-th: (expert, first row, end)."""
    return (
        gl.load(tiles + 3 * index),
        gl.load(tiles + 3 * index + 1),
        gl.load(tiles + 3 * index + 2),
    )


@gluon.jit
def _activations_role(pipe, a, tiles, count, N, steps):
    tiles_n = gl.cdiv(N, BN)
    place = first_place()
    await_previous()
    for index in range(gl.program_id(0), count * tiles_n, gl.num_programs(0)):
        _, row, end = _tile(tiles, index // tiles_n)
        if row < end:
            # Rows beyond the expert's are another's: what they give is not stored.
            place = copy_activations(pipe, a, place, row, 0, steps)


@gluon.jit
def _weights_role(pipe, words, scales, scale_tiles, tiles, count, N, steps):
    tiles_n = gl.cdiv(N, BN)
    place = first_place()
    await_previous()
    for index in range(gl.program_id(0), count * tiles_n, gl.num_programs(0)):
        expert, row, end = _tile(tiles, index // tiles_n)
        n = index % tiles_n
        if row < end:
            word_row, tile_row = expert * N + n * BN, expert * scale_tiles + n
            place = copy_weights(pipe, words, scales, place, word_row, tile_row, 0, steps)


@gluon.jit
def _store(acc, ends, expert, row, end, first_n, N, BM: gl.constexpr):
    alpha, row_scale, bias, out, segment = ends
    alpha += expert * (N // segment)
    if bias is not None:
        bias += expert.to(gl.int64) * N
    store(acc, (alpha, row_scale, bias, out, N, 0, 1, segment), row, first_n, end, False, BM)


@gluon.jit
def _consumer_role(pipe, ends, tiles, count, N, steps, C: gl.constexpr, BM: gl.constexpr):
    tiles_n = gl.cdiv(N, BN)
    place = first_place()
    await_previous()
    for index in range(gl.program_id(0), count * tiles_n, gl.num_programs(0)):
        expert, row, end = _tile(tiles, index // tiles_n)
        if row < end:
            acc = multiply(pipe, place, steps, C, BM)
            place += steps
            _store(acc, ends, expert, row, end, index % tiles_n * BN + C * ROWS, N, BM)


@gluon.jit(do_not_specialize=["count", "steps"])
def _hopper_grouped_mm_kernel(
    a, words, scales, alpha, row_scale, bias, tiles, out, count, N, steps, scale_tiles, segment,
    BM: gl.constexpr, A_SLOTS: gl.constexpr, B_SLOTS: gl.constexpr,
):  # fmt: skip
    pipe = pipeline(BM, A_SLOTS, B_SLOTS)
    ends = (alpha, row_scale, bias, out, segment)
    gl.warp_specialize(
        [
            (_consumer_role, (pipe, ends, tiles, count, N, steps, 0, BM)),
            (_consumer_role, (pipe, ends, tiles, count, N, steps, 1, BM)),
            (_weights_role, (pipe, words, scales, scale_tiles, tiles, count, N, steps)),
            (_activations_role, (pipe, a, tiles, count, N, steps)),
        ],
        [4, 1, 1],
        [CONSUMERS_REGISTERS, COPIERS_REGISTERS, COPIERS_REGISTERS],
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
        (min(sms(a.device), cdiv(n, HOPPER_BN) * tiles.shape[0]),),
        (
            *operands, alpha, row_scale, bias, tiles, out, tiles.shape[0], n, k // K_GROUP,
            scales.shape[1] // TILE_ROWS, n // alpha.shape[1],
        ),
        {"BM": config.BM, "A_SLOTS": config.a_slots, "B_SLOTS": config.b_slots},
        num_warps=4,
        num_stages=1,
        overlaps=True,
    )  # fmt: skip
