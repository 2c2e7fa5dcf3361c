"""The GEMM: out = (A B^T) * alpha + bias on packed operands.

Operands are swapped (the accumulator is [BN, BM] = B A^T), so that few tokens fill the narrow side
of the tensor-core instruction and the weights the wide one.

Before Blackwell both operands are decoded to float16, which holds e2m1 * sf * 2^-14 exactly, and
multiplied by the float16 tensor cores with float32 accumulation: NVFP4's products, exactly. On
Blackwell tl.dot_scaled is the hardware's own block-scaled instruction.
"""

import torch
import triton
import triton.language as tl
from torch import Tensor

from nvfp4.backends.contract import target_of
from nvfp4.backends.triton.architecture import is_blackwell
from nvfp4.backends.triton.launch import Launch, cdiv
from nvfp4.backends.triton.mm_config import MmConfig, choose_config
from nvfp4.backends.triton.tiles import (
    BLOCK,
    E2M1_F16_SCALE,
    e2m1_to_f16,
    e4m3_to_f16,
    from_f32,
    scale_offsets,
    to_f32,
)
from nvfp4.spec.format import DATA_DTYPE


@triton.jit
def _decode(packed, scales, R: tl.constexpr, BK: tl.constexpr):
    """packed uint8 [R, BK/2], scales uint8 [R, BK/16] -> float16 [R, BK], e2m1 * sf * 2^-14.

    The low nibbles of a step come before the high ones: the same order of K in both operands, and
    cheaper than interleaving them.
    """
    sf = tl.broadcast_to(e4m3_to_f16(scales)[:, :, None], (R, BK // 16, 8)).reshape(R, BK // 2)
    planes = tl.join(e2m1_to_f16(packed & 0xF) * sf, e2m1_to_f16(packed >> 4) * sf)
    return planes.permute(0, 2, 1).reshape(R, BK)


@triton.jit
def _load_step(
    data, scales, rows, k, stride, scale_stride, K, BK: tl.constexpr, EVEN_K: tl.constexpr
):
    """One step of an operand: packed uint8 [R, BK/2], scales uint8 [R, BK/16]; zeros beyond K."""
    byte = k // 2 + tl.arange(0, BK // 2)
    block = k // BLOCK + tl.arange(0, BK // BLOCK)
    data_at = data + rows[:, None].to(tl.int64) * stride + byte[None, :]
    scales_at = scales + scale_offsets(rows[:, None], block[None, :], scale_stride, True)
    if EVEN_K:
        return tl.load(data_at), tl.load(scales_at)
    else:
        packed = tl.load(data_at, mask=(byte < K // 2)[None, :], other=0)
        return packed, tl.load(scales_at, mask=(block < K // BLOCK)[None, :], other=0)


@triton.jit
def _mm_kernel(
    a, b, a_scales, b_scales, alpha, row_scale, bias, out, M, N, K,
    a_stride, b_stride, scale_stride, alpha_stride, row_scale_stride, segment,
    HAS_ROW_SCALE: tl.constexpr, HAS_BIAS: tl.constexpr, NATIVE: tl.constexpr, EVEN_K: tl.constexpr,
    BM: tl.constexpr, BN: tl.constexpr, BK: tl.constexpr,
):  # fmt: skip
    n = tl.program_id(0) * BN + tl.arange(0, BN)
    m = tl.program_id(1) * BM + tl.arange(0, BM)
    # Rows beyond the end read the last one again; what they compute is not stored.
    n_read = tl.minimum(n, N - 1)
    m_read = tl.minimum(m, M - 1)

    acc = tl.zeros((BN, BM), tl.float32)
    for k in range(0, K, BK):
        w, w_sf = _load_step(b, b_scales, n_read, k, b_stride, scale_stride, K, BK, EVEN_K)
        x, x_sf = _load_step(a, a_scales, m_read, k, a_stride, scale_stride, K, BK, EVEN_K)
        if NATIVE:
            w_sf = w_sf.to(tl.float8e4nv, bitcast=True)
            x_sf = x_sf.to(tl.float8e4nv, bitcast=True)
            acc = tl.dot_scaled(w, w_sf, "e2m1", x.T, x_sf, "e2m1", acc)
        else:
            acc = tl.dot(_decode(w, w_sf, BN, BK), _decode(x, x_sf, BM, BK).T, acc)
    if not NATIVE:
        acc *= E2M1_F16_SCALE * E2M1_F16_SCALE

    factor = tl.load(
        alpha + m_read[None, :].to(tl.int64) * alpha_stride + (n_read // segment)[:, None]
    )
    if HAS_ROW_SCALE:
        factor *= tl.load(row_scale + m_read * row_scale_stride)[None, :]
    acc *= factor
    if HAS_BIAS:
        acc += to_f32(tl.load(bias + n_read))[:, None]
    at = out + m[None, :].to(tl.int64) * N + n[:, None]
    tl.store(at, from_f32(acc, out.dtype.element_ty), mask=(m < M)[None, :] & (n < N)[:, None])


def plan(
    a: Tensor,
    b: Tensor,
    a_scales: Tensor,
    b_scales: Tensor,
    alpha: Tensor,
    row_scale: Tensor | None,
    bias: Tensor | None,
    out_dtype: torch.dtype,
    sm: int,
    config: MmConfig | None = None,
) -> tuple[Tensor, Launch]:
    """a [M, K/2], b [N, K/2], alpha float32 [1 or M, S], row_scale float32 [1] or [M]; sm: plan
    for it.
    """
    m, n, k = a.shape[0], b.shape[0], a.shape[1] * 2
    out = torch.empty(m, n, dtype=out_dtype, device=a.device)
    config = config or choose_config(m, n, sm)
    launch = Launch(
        _mm_kernel,
        (cdiv(n, config.BN), cdiv(m, config.BM)),
        (
            a, b, a_scales.view(DATA_DTYPE), b_scales.view(DATA_DTYPE), alpha, row_scale, bias, out,
            m, n, k, a.stride(0), b.stride(0), a_scales.shape[1],
            alpha.shape[1] if alpha.shape[0] > 1 else 0,
            int(row_scale is not None and row_scale.numel() > 1), n // alpha.shape[1],
        ),
        {
            "HAS_ROW_SCALE": row_scale is not None,
            "HAS_BIAS": bias is not None,
            "NATIVE": is_blackwell(sm),
            "EVEN_K": k % config.BK == 0,
            "BM": config.BM,
            "BN": config.BN,
            "BK": config.BK,
        },
        num_warps=config.num_warps,
        num_stages=config.num_stages,
    )  # fmt: skip
    return out, launch


def mm(
    a: Tensor,
    b: Tensor,
    a_scales: Tensor,
    b_scales: Tensor,
    alpha: Tensor,
    row_scale: Tensor | None,
    bias: Tensor | None,
    out_dtype: torch.dtype,
) -> Tensor:
    out, launch = plan(
        a, b, a_scales, b_scales, alpha, row_scale, bias, out_dtype, target_of(a.device).sm
    )
    launch.run()
    return out
