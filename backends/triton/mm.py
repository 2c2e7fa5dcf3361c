"""The GEMM: out = (A B^T) * alpha + bias on packed operands."""

from collections.abc import Callable
from functools import partial
from typing import NamedTuple

import torch
import triton
import triton.language as tl
from torch import Tensor

from nvfp4.backends.contract import target_of
from nvfp4.backends.environment import may_split_k
from nvfp4.backends.triton import hopper_mm
from nvfp4.backends.triton.architecture import gemm_architecture, is_blackwell, overlaps
from nvfp4.backends.triton.decode import plan_decode
from nvfp4.backends.triton.gemm import (
    await_previous,
    leave,
    multiply,
    store,
    sum_of_splits,
    words_of,
)
from nvfp4.backends.triton.launch import Launch, cdiv
from nvfp4.backends.triton.mm_config import LEAST, HopperConfig, MmConfig, choose_config
from nvfp4.backends.triton.program import run
from nvfp4.backends.triton.tuned import tuned_config
from nvfp4.spec.format import DATA_DTYPE


@triton.jit
def _factor(
    alpha, row_scale, m_read, n_read, alpha_stride, row_scale_stride, segment,
    HAS_ROW_SCALE: tl.constexpr,
):  # fmt: skip
    """What a tile's sums are multiplied by, [BN, BM]."""
    factor = tl.load(
        alpha + m_read[None, :].to(tl.int64) * alpha_stride + (n_read // segment)[:, None]
    )
    if HAS_ROW_SCALE:
        factor *= tl.load(row_scale + m_read * row_scale_stride)[None, :]
    return factor


@triton.jit(do_not_specialize=["M", "row_scale_stride"])
def _mm_kernel(
    a, b, a_scales, b_scales, alpha, row_scale, bias, out, partial_sums, arrived, M, N, K,
    a_stride, b_stride, scale_stride, alpha_stride, row_scale_stride, segment,
    HAS_ROW_SCALE: tl.constexpr, HAS_BIAS: tl.constexpr, SM: tl.constexpr,
    EVEN_K: tl.constexpr, SPARSE: tl.constexpr, BM: tl.constexpr, BN: tl.constexpr,
    BK: tl.constexpr, SPLITS: tl.constexpr,
):  # fmt: skip
    n = tl.program_id(0) * BN + tl.arange(0, BN)
    m = tl.program_id(1) * BM + tl.arange(0, BM)
    # Rows beyond the end read the last one again, or nothing; what they compute is not stored.
    n_read = tl.minimum(n, N - 1)
    m_read = tl.minimum(m, M - 1)
    live = m < M if SPARSE else None
    share = tl.cdiv(tl.cdiv(K, BK), SPLITS) * BK
    begin = tl.program_id(2) * share
    await_previous(SM)
    if SPLITS > 1:  # of few rows: loaded while they are multiplied
        factor = _factor(
            alpha, row_scale, m_read, n_read, alpha_stride, row_scale_stride, segment, HAS_ROW_SCALE
        )
    acc = multiply(
        a, m_read, a_scales, m_read, a_stride, b, n_read, b_scales, n_read, b_stride, scale_stride,
        begin, tl.minimum(begin + share, K), K, SM, EVEN_K, BM, BN, BK, live,
    )  # fmt: skip
    if SPLITS > 1:
        tile = tl.program_id(1) * tl.num_programs(0) + tl.program_id(0)
        sums = partial_sums + tile.to(tl.int64) * (SPLITS * BN * BM)
        if not leave(acc, sums, tl.program_id(2), arrived + tile, BM, BN, SPLITS):
            return
        acc = sum_of_splits(sums, BM, BN, SPLITS)
    else:
        factor = _factor(
            alpha, row_scale, m_read, n_read, alpha_stride, row_scale_stride, segment, HAS_ROW_SCALE
        )
    store(acc, factor, bias, out, m, n, M, N, n_read, HAS_BIAS, BM, BN)


class Operand(NamedTuple):
    """data [R, K/2] packed bytes, or as words, or [R, K] decoded; its scales as bytes."""

    data: Tensor
    scales: Tensor


Decoding = Callable[[Tensor | None], tuple[Tensor, Launch]]
"""Plans how A is decoded, by a launch that zeroes the counters, if there are some."""


def plan(
    a: Tensor,
    b: Tensor,
    a_scales: Tensor,
    b_scales: Tensor,
    alpha: Tensor,
    row_scale: Tensor | None,
    bias: Tensor | None,
    out: Tensor,
    sm: int,
    config: MmConfig | HopperConfig | None = None,
) -> tuple[Launch, ...]:
    """a [M, K/2], b [N, K/2], scales as bytes, alpha float32 [1 or M, S], row_scale float32 [1] or
    [M], bias [N], out [M, N]; sm: the architecture.
    """
    k, sm = a.shape[1] * 2, gemm_architecture(sm)
    weight = Operand(b, b_scales)
    if not is_blackwell(sm):
        decoding = partial(plan_decode, words_of(a), a_scales, k, sm)
        return plan_decoded(decoding, weight, alpha, row_scale, bias, out, k, sm, config)
    if config is None:
        config = choose_config(out.shape[0], out.shape[1], k, sm)
    assert isinstance(config, MmConfig)
    packed, splits = Operand(a, a_scales), Splits()
    return (_plan_multiply(packed, weight, alpha, row_scale, bias, out, k, config, splits, sm),)


def plan_decoded(
    decoding: Decoding,
    weight: Operand,
    alpha: Tensor,
    row_scale: Tensor | None,
    bias: Tensor | None,
    out: Tensor,
    k: int,
    sm: int,
    config: MmConfig | HopperConfig | None = None,
) -> tuple[Launch, ...]:
    """Before Blackwell, by A decoded."""
    m, n = out.shape
    words = words_of(weight.data)
    aligned = words.stride(0) * 4 == k and not (words.data_ptr() | weight.scales.data_ptr()) % 16
    if config is None and aligned:
        config = tuned_config(m, n, k, out.device, may_split_k())
    if config is None:
        config = choose_config(m, n, k, sm if aligned else LEAST, may_split_k())
    if isinstance(config, HopperConfig):
        shares = hopper_mm.share_out(m, n, k, config, out.device)
        a, decode = decoding(shares.arrived)
        factors = alpha, row_scale, bias
        return decode, hopper_mm.plan_multiply(
            a, words, weight.scales, *factors, out, config, shares
        )
    splits = _plan_splits(m, n, config, out.device)
    a, decode = decoding(splits.arrived)
    operands = Operand(a, weight.scales), Operand(words, weight.scales)
    multiply = _plan_multiply(*operands, alpha, row_scale, bias, out, k, config, splits, sm)
    return decode, multiply


class Splits(NamedTuple):
    """Where the splits of a sum over K meet: float32 [tiles, splits, BN, BM], and how many of each
    tile's have arrived, int32 [tiles], zeroed by the kernel before. None where none is split.
    """

    partial_sums: Tensor | None = None
    arrived: Tensor | None = None


def _plan_splits(m: int, n: int, config: MmConfig, device: torch.device) -> Splits:
    if config.splits == 1:
        return Splits()
    tiles = cdiv(m, config.BM) * cdiv(n, config.BN)
    sums = torch.empty(tiles, config.splits, config.BN, config.BM, device=device)
    return Splits(sums, torch.empty(tiles, dtype=torch.int32, device=device))


MOST_SPARSE = 16
"""Rows of a tile that reads nothing for those of A, decoded, that are not there, if these are half
of it or more. All programs read A's rows at once: a single one that each read eight times took them
2 to 4 % longer on an H200 (in five splits of 16384x7168, with 0 here, 25.8 us instead of 24.7).
"""


def _plan_multiply(
    a: Operand,
    b: Operand,
    alpha: Tensor,
    row_scale: Tensor | None,
    bias: Tensor | None,
    out: Tensor,
    k: int,
    config: MmConfig,
    splits: Splits,
    sm: int,
) -> Launch:
    m, n = out.shape
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
            "SPARSE": not is_blackwell(sm) and 2 * m <= config.BM <= MOST_SPARSE,
            "BM": config.BM,
            "BN": config.BN,
            "BK": config.BK,
            "SPLITS": config.splits,
        },
        num_warps=config.num_warps,
        num_stages=config.num_stages,
        most_registers=config.most_registers,
        overlaps=overlaps(sm),
    )  # fmt: skip


def mm(
    a: Tensor,
    b: Tensor,
    a_scales: Tensor,
    b_scales: Tensor,
    alpha: Tensor,
    row_scale: Tensor | None,
    bias: Tensor | None,
    out: Tensor,
) -> None:
    a_scales, b_scales = a_scales.view(DATA_DTYPE), b_scales.view(DATA_DTYPE)
    sm = target_of(a.device).sm
    run(*plan(a, b, a_scales, b_scales, alpha, row_scale, bias, out, sm))
