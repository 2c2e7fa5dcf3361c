"""The grouped GEMM on Hopper: each expert's rows, decoded, times its own weight as it is stored."""

from torch import Tensor
from triton.experimental import gluon
from triton.experimental.gluon import language as gl

from nvfp4.backends.triton.groups import experts_vector, most_tiles
from nvfp4.backends.triton.hopper import (
    BK,
    copy_layout,
    first_scale,
    multiply,
    rows_and_columns,
    store,
    weight_offsets,
)
from nvfp4.backends.triton.launch import Launch, cdiv
from nvfp4.backends.triton.mm_config import HopperConfig


@gluon.jit
def _add(a, b):
    return a + b


@gluon.jit
def _tile_of_expert(offsets, index, E, ROWS: gl.constexpr, EXPERTS: gl.constexpr):
    """groups.tile_of_expert."""
    warps: gl.constexpr = gl.num_warps()
    layout: gl.constexpr = gl.BlockedLayout([max(1, EXPERTS // (32 * warps))], [32], [warps], [0])
    expert = gl.arange(0, EXPERTS, layout)
    begin = gl.load(offsets + expert, mask=expert < E, other=0)
    end = gl.load(offsets + 1 + expert, mask=expert < E, other=0)
    tiles = (end - begin + ROWS - 1) // ROWS
    before = gl.associative_scan(tiles, 0, _add) - tiles
    found = (before <= index) & (index < before + tiles)
    row = begin + (index - before) * ROWS
    return (
        gl.sum(gl.where(found, expert, 0)),
        gl.sum(gl.where(found, row, 0)),
        gl.sum(gl.where(found, end, 0)),
    )


@gluon.jit
def _hopper_grouped_mm_kernel(
    a, b, b_scales, alpha, row_scale, bias, offsets, out, E, N, b_scale_rows, segment,
    HAS_ROW_SCALE: gl.constexpr, HAS_BIAS: gl.constexpr, K: gl.constexpr, SCALE_K: gl.constexpr,
    EVEN_N: gl.constexpr, EXPERTS: gl.constexpr,
    BM: gl.constexpr, BN: gl.constexpr, STAGES: gl.constexpr,
):  # fmt: skip
    expert, row, end = _tile_of_expert(offsets, gl.program_id(1), E, BM, EXPERTS)
    if row < end:
        # Rows beyond the expert's are another's, or nobody's: what they give is not stored.
        local, k = rows_and_columns(BM, BK, copy_layout(BK, 8, gl.num_warps()))
        first_n = gl.program_id(0) * BN
        words, scales = weight_offsets(N - 1 - first_n, K, EVEN_N, BN)
        wide = expert.to(gl.int64)
        acc = multiply(
            a + row.to(gl.int64) * K, local * K + k,
            b + (wide * N + first_n) * (K // 4), words,
            b_scales + wide * b_scale_rows * SCALE_K + first_scale(first_n, K), scales,
            K // BK, BM, BN, STAGES,
        )  # fmt: skip
        if HAS_BIAS:
            bias += wide * N
        store(
            acc, alpha + expert * (N // segment), row_scale, bias, out, row, first_n, end, N, 0, 1,
            segment, False, HAS_ROW_SCALE, HAS_BIAS, BM, BN,
        )  # fmt: skip


def plan_multiply(
    a: Tensor,
    words: Tensor,
    scales: Tensor,
    alpha: Tensor,
    row_scale: Tensor | None,
    bias: Tensor | None,
    offsets: Tensor,
    out: Tensor,
    config: HopperConfig,
) -> Launch:
    """a float16 [R + BM, K] decoded, of which R are rows, words [E, N, K/4], scales as bytes [E,
    Np, Kp], alpha float32 [E, S], row_scale float32 [R], bias [E, N], out [R, N].
    """
    (rows, n), experts, k = out.shape, words.shape[0], a.shape[1]
    return Launch(
        _hopper_grouped_mm_kernel,
        (cdiv(n, config.BN), most_tiles(rows, experts, config.BM)),
        (
            a, words, scales, alpha, row_scale, bias, offsets, out, experts, n, scales.shape[1],
            n // alpha.shape[1],
        ),
        {
            "HAS_ROW_SCALE": row_scale is not None,
            "HAS_BIAS": bias is not None,
            "K": k,
            "SCALE_K": scales.shape[2],
            "EVEN_N": n % config.BN == 0,
            "EXPERTS": experts_vector(experts),
            "BM": config.BM,
            "BN": config.BN,
            "STAGES": config.num_stages,
        },
        num_warps=config.num_warps,
        num_stages=1,
        overlaps=True,
    )  # fmt: skip
