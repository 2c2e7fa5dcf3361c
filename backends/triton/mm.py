"""The GEMM: out = (A B^T) * alpha + bias on packed operands."""

import torch
import triton
import triton.language as tl
from torch import Tensor

from nvfp4.backends.contract import target_of
from nvfp4.backends.triton.architecture import is_blackwell
from nvfp4.backends.triton.gemm import decode, load_scales, load_step, multiply, store, words_of
from nvfp4.backends.triton.launch import Launch, cdiv
from nvfp4.backends.triton.mm_config import K_GROUP, MmConfig, choose_config
from nvfp4.spec.format import DATA_DTYPE


@triton.jit(do_not_specialize=["M"])
def _decode_kernel(
    words, scales, out, M, K, stride, scale_stride, out_stride, R: tl.constexpr, C: tl.constexpr
):
    """out float16 [M, K rounded up to GROUP]: what decode makes of each group, zeros beyond K."""
    rows = tl.program_id(0) * R + tl.arange(0, R)
    k = tl.program_id(1) * C
    read = tl.minimum(rows, M - 1)
    unit = k // 4 + tl.arange(0, C // 4)
    codes = load_step(words, read, unit, stride, K // 4, False)
    values = decode(codes, load_scales(scales, read, k, scale_stride, K, C, False), R, C)
    columns = k + tl.arange(0, C)
    at = out + rows[:, None].to(tl.int64) * out_stride + columns[None, :]
    tl.store(at, values, mask=(rows < M)[:, None] & (columns < out_stride)[None, :])


@triton.jit(do_not_specialize=["M", "row_scale_stride"])
def _mm_kernel(
    a, b, a_scales, b_scales, alpha, row_scale, bias, out, M, N, K,
    a_stride, b_stride, scale_stride, alpha_stride, row_scale_stride, segment,
    HAS_ROW_SCALE: tl.constexpr, HAS_BIAS: tl.constexpr, NATIVE: tl.constexpr,
    A_DECODED: tl.constexpr, EVEN_K: tl.constexpr,
    BM: tl.constexpr, BN: tl.constexpr, BK: tl.constexpr,
):  # fmt: skip
    n = tl.program_id(0) * BN + tl.arange(0, BN)
    m = tl.program_id(1) * BM + tl.arange(0, BM)
    # Rows beyond the end read the last one again; what they compute is not stored.
    n_read = tl.minimum(n, N - 1)
    m_read = tl.minimum(m, M - 1)
    acc = multiply(
        a, m_read, a_scales, m_read, a_stride, b, n_read, b_scales, n_read, b_stride, scale_stride,
        K, NATIVE, A_DECODED, EVEN_K, BM, BN, BK,
    )  # fmt: skip
    factor = tl.load(
        alpha + m_read[None, :].to(tl.int64) * alpha_stride + (n_read // segment)[:, None]
    )
    if HAS_ROW_SCALE:
        factor *= tl.load(row_scale + m_read * row_scale_stride)[None, :]
    store(acc, factor, bias, out, m, n, M, N, n_read, HAS_BIAS, BM, BN)


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
    config: MmConfig | None = None,
) -> tuple[Launch, ...]:
    """a [M, K/2], b [N, K/2], scales as bytes, alpha float32 [1 or M, S], row_scale float32 [1] or
    [M], bias [N], out [M, N]; sm: the architecture.
    """
    (m, n), k = out.shape, a.shape[1] * 2
    native = is_blackwell(sm)
    config = config or choose_config(m, n, sm)
    first: tuple[Launch, ...] = ()
    if not native:
        a, b = words_of(a), words_of(b)
        if config.decode_a_first:
            a, launch = _plan_decode(a, a_scales, k)
            first = (launch,)
    multiply = Launch(
        _mm_kernel,
        (cdiv(n, config.BN), cdiv(m, config.BM)),
        (
            a, b, a_scales, b_scales, alpha, row_scale, bias, out,
            m, n, k, a.stride(0), b.stride(0), a_scales.shape[1],
            alpha.shape[1] if alpha.shape[0] > 1 else 0,
            int(row_scale is not None and row_scale.numel() > 1), n // alpha.shape[1],
        ),
        {
            "HAS_ROW_SCALE": row_scale is not None,
            "HAS_BIAS": bias is not None,
            "NATIVE": native,
            "A_DECODED": config.decode_a_first,
            "EVEN_K": k % config.BK == 0,
            "BM": config.BM,
            "BN": config.BN,
            "BK": config.BK,
        },
        num_warps=config.num_warps,
        num_stages=config.num_stages,
    )  # fmt: skip
    return (*first, multiply)


def _plan_decode(words: Tensor, scales: Tensor, k: int) -> tuple[Tensor, Launch]:
    """Decode A once, for every program that multiplies it: float16 [M, k rounded up to K_GROUP]."""
    m, rows, columns = words.shape[0], 8, 512
    width = cdiv(k, K_GROUP) * K_GROUP
    out = torch.empty(m, width, dtype=torch.float16, device=words.device)
    args = (words, scales, out, m, k, words.stride(0), scales.shape[1], width)
    grid = (cdiv(m, rows), cdiv(width, columns))
    return out, Launch(_decode_kernel, grid, args, {"R": rows, "C": columns})


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
    for launch in plan(a, b, a_scales, b_scales, alpha, row_scale, bias, out, sm):
        launch.run()
