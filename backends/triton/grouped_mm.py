"""The grouped GEMM: each expert's rows times its weight, in one launch.

The grid has as many tiles as the experts' rows can take at most. A program finds its tile by the
offsets, on the device; one that finds none returns.
"""

from collections.abc import Callable
from functools import partial

import torch
import triton
import triton.language as tl
from torch import Tensor

from nvfp4.backends.target import target_of
from nvfp4.backends.triton.device.groups import (
    experts_of_rows,
    experts_vector,
    max_tiles,
    scale_rows,
    store_tiles,
    tile_of_expert,
)
from nvfp4.backends.triton.gemm.config import (
    TMA_ALIGNMENT,
    HopperConfig,
    MmConfig,
    choose_grouped_config,
)
from nvfp4.backends.triton.gemm.decode import decode_tile, decoded_width, words_of
from nvfp4.backends.triton.gemm.multiply import multiply, store
from nvfp4.backends.triton.gemm.operands import Factors, Operand
from nvfp4.backends.triton.hopper import grouped_mm as hopper_grouped_mm
from nvfp4.backends.triton.runtime.architecture import gemm_architecture, is_blackwell
from nvfp4.backends.triton.runtime.launch import Launch, cdiv
from nvfp4.backends.triton.runtime.program import run
from nvfp4.calls import GroupedMm, takes
from nvfp4.spec.format import DATA_DTYPE


@triton.jit(do_not_specialize=["count"])
def _decode_rows_kernel(
    words, scales, offsets, out, tiles, count, E, K, stride, scale_stride, out_stride,
    BM: tl.constexpr, EXPERTS: tl.constexpr, R: tl.constexpr, C: tl.constexpr, SM: tl.constexpr,
):  # fmt: skip
    """Decode the experts' rows to out float16 [R, K rounded up to GROUP]; zeros beyond K.

    Unassigned rows are not written. tiles: if given, the tile list for the GEMM that comes after.
    """
    if tiles is not None:
        store_tiles(tiles, count, offsets, E, BM, EXPERTS)
    rows = tl.program_id(0) * R + tl.arange(0, R)
    expert = experts_of_rows(offsets, rows, E, EXPERTS)
    row_mask = expert < E
    begin = tl.load(offsets + expert, mask=row_mask, other=0)
    # Unassigned rows read row 0: it exists, and so do its scales.
    read = tl.where(row_mask, rows, 0)
    scale_row = tl.where(row_mask, scale_rows(rows, begin, expert), 0)
    decode_tile(
        words, read, scales, scale_row, out, rows, row_mask, K, stride, scale_stride, out_stride,
        R, C, SM,
    )  # fmt: skip


@triton.jit
def _grouped_mm_kernel(
    a, b, a_scales, b_scales, alpha, row_scale, bias, offsets, out, E, N, K,
    a_stride, b_stride, scale_stride, b_scale_rows, segment,
    HAS_ROW_SCALE: tl.constexpr, HAS_BIAS: tl.constexpr, SM: tl.constexpr,
    EVEN_K: tl.constexpr, EXPERTS: tl.constexpr,
    BM: tl.constexpr, BN: tl.constexpr, BK: tl.constexpr,
):  # fmt: skip
    expert, begin, row, end = tile_of_expert(offsets, tl.program_id(1), E, BM, EXPERTS)
    if row >= end:
        return
    n = tl.program_id(0) * BN + tl.arange(0, BN)
    m = row + tl.arange(0, BM)
    # Rows beyond the end read the last row again; their results are not stored.
    n_read = tl.minimum(n, N - 1)
    m_read = tl.minimum(m, end - 1)
    wide = expert.to(tl.int64)
    acc = multiply(
        a, m_read, a_scales, scale_rows(m_read, begin, expert), a_stride,
        b + wide * N * b_stride, n_read, b_scales + wide * b_scale_rows * scale_stride, n_read,
        b_stride, scale_stride, 0, K, K, SM, EVEN_K, BM, BN, BK,
    )  # fmt: skip
    factor = tl.load(alpha + expert * (N // segment) + n_read // segment)[:, None]
    if HAS_ROW_SCALE:
        factor = factor * tl.load(row_scale + m_read)[None, :]
    if HAS_BIAS:
        bias += wide * N
    store(acc, factor, bias, out, m, n, end, N, n_read, HAS_BIAS, BM, BN)


Decoding = Callable[[Tensor | None, int], tuple[Tensor, Launch]]
"""Plans the launch that makes a decoded A float16 [R, decoded_width(K)], from the tile list that
it also has to fill, if any (groups.store_tiles), and the rows of a tile.
"""


def plan(
    call: GroupedMm, out: Tensor, sm: int, config: MmConfig | HopperConfig | None = None
) -> tuple[Launch, ...]:
    """The launches for a prepared call on architecture sm_<sm>; config: default the one chosen."""
    a = Operand(call.a, call.a_scales.view(DATA_DTYPE))
    b = Operand(call.b, call.b_scales.view(DATA_DTYPE))
    factors = Factors(call.alpha, call.row_scale, call.bias)
    k, experts, sm = a.data.shape[1] * 2, b.data.shape[0], gemm_architecture(sm)
    if is_blackwell(sm):
        config = config or choose_grouped_config(call.expected_rows, experts, k, sm)
        assert isinstance(config, MmConfig)
        return (_plan_multiply(a, b, factors, call.offsets, out, k, config, sm),)
    decoding = partial(_plan_decode, words_of(a.data), a.scales, call.offsets, k, sm)
    return plan_decoded(decoding, b, factors, call.offsets, out, k, call.expected_rows, sm, config)


def plan_decoded(
    decoding: Decoding,
    weight: Operand,
    factors: Factors,
    offsets: Tensor,
    out: Tensor,
    k: int,
    expected_rows: int,
    sm: int,
    config: MmConfig | HopperConfig | None = None,
) -> tuple[Launch, ...]:
    """Plan the grouped GEMM with a decoded A, as before Blackwell: decode, then multiply."""
    rows, experts = out.shape[0], offsets.numel() - 1
    weight = weight._replace(data=words_of(weight.data))
    addresses = weight.data.data_ptr() | weight.scales.data_ptr()
    aligned = weight.data.is_contiguous() and addresses % TMA_ALIGNMENT == 0
    config = config or choose_grouped_config(expected_rows, experts, k, sm, not aligned)
    if isinstance(config, HopperConfig):
        shape = max_tiles(rows, experts, config.BM), 3
        tiles = torch.empty(shape, dtype=torch.int32, device=out.device)
        a, launch = decoding(tiles, config.BM)
        return launch, hopper_grouped_mm.plan_multiply(a, weight, factors, tiles, out, config)
    a, launch = decoding(None, config.BM)
    operands = Operand(a, weight.scales), weight
    return launch, _plan_multiply(*operands, factors, offsets, out, k, config, sm)


def _plan_multiply(
    a: Operand,
    b: Operand,
    factors: Factors,
    offsets: Tensor,
    out: Tensor,
    k: int,
    config: MmConfig,
    sm: int,
) -> Launch:
    (rows, n), experts, (alpha, row_scale, bias) = out.shape, offsets.numel() - 1, factors
    return Launch(
        _grouped_mm_kernel,
        (cdiv(n, config.BN), max_tiles(rows, experts, config.BM)),
        (
            a.data, b.data, a.scales, b.scales, alpha, row_scale, bias, offsets, out,
            experts, n, k, a.data.stride(0), b.data.stride(1), b.scales.shape[2],
            b.scales.shape[1], n // alpha.shape[1],
        ),
        {
            "HAS_ROW_SCALE": row_scale is not None,
            "HAS_BIAS": bias is not None,
            "SM": sm,
            "EVEN_K": k % config.BK == 0,
            "EXPERTS": experts_vector(experts),
            "BM": config.BM,
            "BN": config.BN,
            "BK": config.BK,
        },
        num_warps=config.num_warps,
        num_stages=config.stages(sm),
        maxnreg=config.maxnreg,
    )  # fmt: skip


def _plan_decode(
    words: Tensor,
    scales: Tensor,
    offsets: Tensor,
    k: int,
    sm: int,
    tiles: Tensor | None,
    bm: int,
) -> tuple[Tensor, Launch]:
    """Plan decoding A to float16 [R, k rounded up to K_GROUP], once for every program.

    The launch also fills tiles int32 [max_tiles, 3] for tiles of bm rows (groups.store_tiles).
    """
    m, tile_rows, columns = words.shape[0], 8, 512
    width, experts = decoded_width(k), offsets.numel() - 1
    out = torch.empty(m, width, dtype=torch.float16, device=words.device)
    launch = Launch(
        _decode_rows_kernel,
        (cdiv(m, tile_rows), cdiv(width, columns)),
        (
            words, scales, offsets, out, tiles, 0 if tiles is None else tiles.shape[0], experts, k,
            words.stride(0), scales.shape[1], width,
        ),
        {
            "BM": bm,
            "EXPERTS": experts_vector(experts),
            "R": tile_rows,
            "C": columns,
            "SM": sm,
        },
    )  # fmt: skip
    return out, launch


@takes(GroupedMm.prepared)
def grouped_mm(call: GroupedMm, out: Tensor) -> None:
    run(*plan(call, out, target_of(out.device).sm))
