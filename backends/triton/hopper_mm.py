"""The GEMM on Hopper: out = (A B^T) * alpha + bias, with A decoded and B as it is stored.

All steps of all tiles are shared out evenly among as many programs as the GPU runs at once, so that
none waits for a last, half-empty wave ("stream-K": Osama et al., 2023). A tile that two or more
programs have steps of is summed by the one that comes last, in the order of K: the same bits each
time.
"""

from typing import NamedTuple

import torch
from torch import Tensor
from triton.experimental import gluon
from triton.experimental.gluon import language as gl

from nvfp4.backends.triton.hopper import (
    BK,
    BLOCKS,
    WORDS,
    barrier,
    copy_layout,
    first_scale,
    multiply,
    rows_and_columns,
    store,
    sums_layout,
    weight_offsets,
)
from nvfp4.backends.triton.launch import Launch, cdiv
from nvfp4.backends.triton.mm_config import K_GROUP, HopperConfig, sms

BAND = 8
"""Tiles of rows that are multiplied beside each other, by the same weights."""


@gluon.jit
def _tile_at(tile, tiles_m, tiles_n, BAND: gl.constexpr):
    """(m, n) of a tile: BAND tiles of m beside each other, then the next of n, to share what the L2
    cache holds.
    """
    band = tile // (BAND * tiles_n)
    rows = gl.minimum(tiles_m - band * BAND, BAND)
    within = tile % (BAND * tiles_n)
    return band * BAND + within % rows, within // rows


@gluon.jit
def _as_stored(acc, BM: gl.constexpr, BN: gl.constexpr):
    """Sums as partial_sums has them, four to a thread, 16 bytes: [BN * BM / 4, 4]."""
    layout: gl.constexpr = gl.BlockedLayout([1, 4], [32, 1], [gl.num_warps(), 1], [1, 0])
    quads = acc.reshape([BN // 16, 2, 8, BM // 8, 4, 2]).permute([3, 0, 2, 4, 1, 5])
    return gl.convert_layout(quads.reshape([BN * BM // 4, 4]), layout, assert_trivial=True)


@gluon.jit
def _as_multiplied(quads, BM: gl.constexpr, BN: gl.constexpr):
    """_as_stored's inverse."""
    acc = quads.reshape([BM // 8, BN // 16, 8, 4, 2, 2]).permute([1, 4, 2, 0, 3, 5])
    layout: gl.constexpr = sums_layout(BM, gl.num_warps())
    return gl.convert_layout(acc.reshape([BN, BM]), layout, assert_trivial=True)


@gluon.jit
def _places(BM: gl.constexpr, BN: gl.constexpr):
    layout: gl.constexpr = gl.BlockedLayout([1, 4], [32, 1], [gl.num_warps(), 1], [1, 0])
    row, column = rows_and_columns(BN * BM // 4, 4, layout)
    return row * 4 + column


@gluon.jit
def _leave(quads, sums, arrived, others, BM: gl.constexpr, BN: gl.constexpr):
    """Leave a program's sums for the tile's last one; whether this is the last."""
    gl.store(sums + _places(BM, BN), quads)
    barrier()  # all threads' stores come before the one that counts
    return gl.atomic_add(arrived, 1, sem="acq_rel") == others


@gluon.jit
def _program_at(step, steps, programs):
    """Which program has a step: the last whose first is not beyond it."""
    return (((step + 1).to(gl.int64) * programs - 1) // steps).to(gl.int32)


@gluon.jit
def _left(
    partial_sums, program, tile, steps, programs, STEPS: gl.constexpr,
    BM: gl.constexpr, BN: gl.constexpr,
):  # fmt: skip
    """A tile's sums that a program left: its first tile's in the first of its two places."""
    first_tile = (program.to(gl.int64) * steps // programs).to(gl.int32) // STEPS
    place = 2 * program + (first_tile != tile).to(gl.int32)
    at = partial_sums + place.to(gl.int64) * (BN * BM) + _places(BM, BN)
    return gl.load(at, cache_modifier=".cg")


@gluon.jit
def _sum(
    quads, partial_sums, program, first, others, tile, steps, programs, STEPS: gl.constexpr,
    BM: gl.constexpr, BN: gl.constexpr,
):  # fmt: skip
    """A tile's sums, of programs first .. first + others, in that order; of two, in any."""
    if others == 1:
        quads += _left(partial_sums, 2 * first + 1 - program, tile, steps, programs, STEPS, BM, BN)
    else:
        quads = _left(partial_sums, first, tile, steps, programs, STEPS, BM, BN)
        for each in range(first + 1, first + others + 1):
            quads += _left(partial_sums, each, tile, steps, programs, STEPS, BM, BN)
    return quads


@gluon.jit(do_not_specialize=["M", "row_scale_stride"])
def _hopper_mm_kernel(
    a, b, b_scales, alpha, row_scale, bias, out, partial_sums, arrived, M, N, alpha_stride,
    row_scale_stride, segment,
    ALPHA_OF_ROWS: gl.constexpr, HAS_ROW_SCALE: gl.constexpr, HAS_BIAS: gl.constexpr,
    K: gl.constexpr, EVEN_N: gl.constexpr,
    BM: gl.constexpr, BN: gl.constexpr, STAGES: gl.constexpr, SPLIT: gl.constexpr,
    BAND: gl.constexpr,
):  # fmt: skip
    num_warps: gl.constexpr = gl.num_warps()
    STEPS: gl.constexpr = K // BK
    row, k = rows_and_columns(BM, BK, copy_layout(BK, 8, num_warps))
    elements = row * K + k

    tiles_m, tiles_n = gl.cdiv(M, BM), gl.cdiv(N, BN)
    steps, programs, program = tiles_m * tiles_n * STEPS, gl.num_programs(0), gl.program_id(0)
    step, end = program * STEPS, (program + 1) * STEPS
    if SPLIT:
        step = (program.to(gl.int64) * steps // programs).to(gl.int32)
        end = ((program + 1).to(gl.int64) * steps // programs).to(gl.int32)
    own = 0
    while step < end:
        tile = step // STEPS
        begin = step % STEPS
        count = gl.minimum(STEPS - begin, end - step)
        tile_m, tile_n = _tile_at(tile, tiles_m, tiles_n, BAND)
        first_m, first_n = tile_m * BM, tile_n * BN
        words, scales = weight_offsets(N - 1 - first_n, K, EVEN_N, BN)
        acc = multiply(
            a + first_m.to(gl.int64) * K + begin * BK, elements,
            b + first_n.to(gl.int64) * (K // 4) + begin * WORDS, words,
            b_scales + first_scale(first_n, K) + begin * (BLOCKS // 4 * 512), scales,
            count, BM, BN, STAGES,
        )  # fmt: skip
        last = True
        if SPLIT:  # noqa: SIM102 - one is known when compiling
            if count < STEPS:
                first = _program_at(tile * STEPS, steps, programs)
                others = _program_at(tile * STEPS + STEPS - 1, steps, programs) - first
                quads = _as_stored(acc, BM, BN)
                own_sums = partial_sums + (2 * program + own).to(gl.int64) * (BN * BM)
                last = _leave(quads, own_sums, arrived + tile, others, BM, BN)
                if last:
                    quads = _sum(
                        quads, partial_sums, program, first, others, tile, steps, programs, STEPS,
                        BM, BN,
                    )  # fmt: skip
                    acc = _as_multiplied(quads, BM, BN)
        if last:
            store(
                acc, alpha, row_scale, bias, out, first_m, first_n, M, N, alpha_stride,
                row_scale_stride, segment, ALPHA_OF_ROWS, HAS_ROW_SCALE, HAS_BIAS, BM, BN,
            )  # fmt: skip
        step += count
        own = 1


class Shares(NamedTuple):
    """How the steps are shared out. partial_sums: float32 [2 * programs, BN, BM], what each leaves
    of its first and its last tile; arrived: int32 [tiles], how many have left theirs, zeroed by the
    kernel before. None where each tile is one program's.
    """

    programs: int
    partial_sums: Tensor | None = None
    arrived: Tensor | None = None


def share_out(m: int, n: int, k: int, config: HopperConfig, device: torch.device) -> Shares:
    tiles = cdiv(m, config.BM) * cdiv(n, config.BN)
    if not config.per_sm:
        return Shares(tiles)
    programs = min(config.per_sm * sms(device), tiles * (k // K_GROUP))
    sums = torch.empty(2 * programs, config.BN, config.BM, device=device)
    return Shares(programs, sums, torch.empty(tiles, dtype=torch.int32, device=device))


def plan_multiply(
    a: Tensor,
    words: Tensor,
    scales: Tensor,
    alpha: Tensor,
    row_scale: Tensor | None,
    bias: Tensor | None,
    out: Tensor,
    config: HopperConfig,
    shares: Shares,
) -> Launch:
    """a float16 [M rounded up to BM, K] decoded, words [N, K/4], scales as bytes, alpha float32
    [1 or M, S], row_scale float32 [1] or [M], bias [N], out [M, N].
    """
    (m, n), k = out.shape, a.shape[1]
    return Launch(
        _hopper_mm_kernel,
        (shares.programs,),
        (
            a, words, scales, alpha, row_scale, bias, out, shares.partial_sums, shares.arrived,
            m, n, alpha.shape[1], int(row_scale is not None and row_scale.numel() > 1),
            n // alpha.shape[1],
        ),
        {
            "ALPHA_OF_ROWS": alpha.shape[0] > 1,
            "HAS_ROW_SCALE": row_scale is not None,
            "HAS_BIAS": bias is not None,
            "K": k,
            "EVEN_N": n % config.BN == 0,
            "BM": config.BM,
            "BN": config.BN,
            "STAGES": config.num_stages,
            "SPLIT": config.per_sm > 0,
            "BAND": BAND,
        },
        num_warps=config.num_warps,
        num_stages=1,
        overlaps=True,
    )  # fmt: skip
