"""The GEMM on packed operands: out = (A B^T) * alpha + bias."""

from collections.abc import Callable
from functools import partial

import triton
import triton.language as tl
from torch import Tensor

from nvfp4.backends.environment import may_split_k
from nvfp4.backends.target import target_of
from nvfp4.backends.triton.device.pdl import wait_for_previous_kernel
from nvfp4.backends.triton.gemm.config import TMA_ALIGNMENT, HopperConfig, MmConfig, choose_config
from nvfp4.backends.triton.gemm.decode import plan_decode, words_of
from nvfp4.backends.triton.gemm.multiply import multiply, store
from nvfp4.backends.triton.gemm.operands import Factors, Operand
from nvfp4.backends.triton.gemm.split_k import Splits, plan_splits, reduce_partials, store_partial
from nvfp4.backends.triton.gemm.tuned import tuned_config
from nvfp4.backends.triton.hopper import mm as hopper_mm
from nvfp4.backends.triton.hopper.stream_k import make_schedule
from nvfp4.backends.triton.runtime.architecture import gemm_architecture, is_blackwell, supports_pdl
from nvfp4.backends.triton.runtime.launch import Launch, cdiv
from nvfp4.backends.triton.runtime.program import run
from nvfp4.calls import Mm, takes
from nvfp4.spec.format import DATA_DTYPE


@triton.jit
def _factor(
    alpha, row_scale, m_read, n_read, alpha_stride, row_scale_stride, segment,
    HAS_ROW_SCALE: tl.constexpr,
):  # fmt: skip
    """Load a tile's scale factors, alpha times the row scale: [BN, BM] or what broadcasts to it."""
    factor = tl.load(
        alpha + m_read[None, :].to(tl.int64) * alpha_stride + (n_read // segment)[:, None]
    )
    if HAS_ROW_SCALE:
        factor *= tl.load(row_scale + m_read * row_scale_stride)[None, :]
    return factor


@triton.jit(do_not_specialize=["M", "row_scale_stride"])
def _mm_kernel(
    a, b, a_scales, b_scales, alpha, row_scale, bias, out, partial_sums, tile_counters, M, N, K,
    a_stride, b_stride, scale_stride, alpha_stride, row_scale_stride, segment,
    HAS_ROW_SCALE: tl.constexpr, HAS_BIAS: tl.constexpr, SM: tl.constexpr,
    EVEN_K: tl.constexpr, MASK_ROWS: tl.constexpr, BM: tl.constexpr, BN: tl.constexpr,
    BK: tl.constexpr, SPLITS: tl.constexpr,
):  # fmt: skip
    n = tl.program_id(0) * BN + tl.arange(0, BN)
    m = tl.program_id(1) * BM + tl.arange(0, BM)
    # Rows beyond the end read the last row again, or are masked; their results are not stored.
    n_read = tl.minimum(n, N - 1)
    m_read = tl.minimum(m, M - 1)
    row_mask = m < M if MASK_ROWS else None
    share = tl.cdiv(tl.cdiv(K, BK), SPLITS) * BK
    begin = tl.program_id(2) * share
    wait_for_previous_kernel(SM)
    if SPLITS > 1:  # few rows: their factors are prefetched during the mainloop
        factor = _factor(
            alpha, row_scale, m_read, n_read, alpha_stride, row_scale_stride, segment, HAS_ROW_SCALE
        )
    acc = multiply(
        a, m_read, a_scales, m_read, a_stride, b, n_read, b_scales, n_read, b_stride, scale_stride,
        begin, tl.minimum(begin + share, K), K, SM, EVEN_K, BM, BN, BK, row_mask,
    )  # fmt: skip
    if SPLITS > 1:
        tile = tl.program_id(1) * tl.num_programs(0) + tl.program_id(0)
        partial_sums += tile.to(tl.int64) * (SPLITS * BN * BM)
        counter = tile_counters + tile
        if not store_partial(acc, partial_sums, tl.program_id(2), counter, BM, BN, SPLITS):
            return
        acc = reduce_partials(partial_sums, BM, BN, SPLITS)
    else:
        factor = _factor(
            alpha, row_scale, m_read, n_read, alpha_stride, row_scale_stride, segment, HAS_ROW_SCALE
        )
    store(acc, factor, bias, out, m, n, M, N, n_read, HAS_BIAS, BM, BN)


Decoding = Callable[[Tensor | None], tuple[Tensor, Launch]]
"""Plans the launch that decodes A and zeroes the given tile counters, if any."""


def plan(
    call: Mm, out: Tensor, sm: int, config: MmConfig | HopperConfig | None = None
) -> tuple[Launch, ...]:
    """The launches for a prepared call on architecture sm_<sm>; config: default the one chosen."""
    k, sm = call.a.shape[1] * 2, gemm_architecture(sm)
    a_scales, b_scales = call.a_scales.view(DATA_DTYPE), call.b_scales.view(DATA_DTYPE)
    weight = Operand(call.b, b_scales)
    factors = Factors(call.alpha, call.row_scale, call.bias)
    if not is_blackwell(sm):
        decoding = partial(plan_decode, words_of(call.a), a_scales, k, sm)
        return plan_decoded(decoding, weight, factors, out, k, sm, config)
    if config is None:
        config = choose_config(out.shape[0], out.shape[1], k, sm)
    assert isinstance(config, MmConfig)
    packed = Operand(call.a, a_scales)
    return (_plan_multiply(packed, weight, factors, out, k, config, Splits(), sm),)


def plan_decoded(
    decoding: Decoding,
    weight: Operand,
    factors: Factors,
    out: Tensor,
    k: int,
    sm: int,
    config: MmConfig | HopperConfig | None = None,
) -> tuple[Launch, ...]:
    """Plan the GEMM with a decoded A, as before Blackwell: decode, then multiply."""
    m, n = out.shape
    words = words_of(weight.data)
    addresses = words.data_ptr() | weight.scales.data_ptr()
    aligned = words.stride(0) * 4 == k and addresses % TMA_ALIGNMENT == 0
    if config is None and aligned:
        config = tuned_config(m, n, k, out.device, may_split_k())
    if config is None:
        config = choose_config(m, n, k, sm, may_split_k(), portable=not aligned)
    if isinstance(config, HopperConfig):
        schedule = make_schedule(m, n, k, config, out.device)
        a, decode = decoding(schedule.tile_counters)
        weight = weight._replace(data=words)
        return decode, hopper_mm.plan_multiply(a, weight, factors, out, config, schedule)
    splits = plan_splits(m, n, config, out.device)
    a, decode = decoding(splits.tile_counters)
    operands = Operand(a, weight.scales), Operand(words, weight.scales)
    multiply = _plan_multiply(*operands, factors, out, k, config, splits, sm)
    return decode, multiply


MASK_ROWS_MAX_BM = 16
"""The largest BM of a tile that masks A's missing rows, if half of its rows or more are missing.

All programs read A's rows at once. Masking the rows instead of re-reading the last one made the
GEMM 2 to 4 % faster on an H200 (16384x7168, 5 splits: 24.7 us instead of 25.8).
"""


def _plan_multiply(
    a: Operand,
    b: Operand,
    factors: Factors,
    out: Tensor,
    k: int,
    config: MmConfig,
    splits: Splits,
    sm: int,
) -> Launch:
    (m, n), (alpha, row_scale, bias) = out.shape, factors
    return Launch(
        _mm_kernel,
        (cdiv(n, config.BN), cdiv(m, config.BM), config.splits),
        (
            a.data, b.data, a.scales, b.scales, alpha, row_scale, bias, out, *splits,
            m, n, k, a.data.stride(0), b.data.stride(0), b.scales.shape[1],
            alpha.shape[1] if alpha.shape[0] > 1 else 0,
            int(row_scale is not None and row_scale.numel() > 1), n // alpha.shape[1],
        ),
        {
            "HAS_ROW_SCALE": row_scale is not None,
            "HAS_BIAS": bias is not None,
            "SM": sm,
            "EVEN_K": k % config.BK == 0,
            "MASK_ROWS": not is_blackwell(sm) and 2 * m <= config.BM <= MASK_ROWS_MAX_BM,
            "BM": config.BM,
            "BN": config.BN,
            "BK": config.BK,
            "SPLITS": config.splits,
        },
        num_warps=config.num_warps,
        num_stages=config.stages(sm),
        maxnreg=config.maxnreg,
        launch_pdl=supports_pdl(sm),
    )  # fmt: skip


@takes(Mm.prepared)
def mm(call: Mm, out: Tensor) -> None:
    run(*plan(call, out, target_of(out.device).sm))
