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
from nvfp4.backends.triton.mm_config import K_GROUP, MmConfig, choose_config
from nvfp4.backends.triton.tiles import (
    BLOCK,
    E2M1_F16_SCALE,
    INTERPRETED,
    e2m1_to_f16,
    e4m3_to_f16,
    from_f32,
    scale_offsets,
    to_f32,
)
from nvfp4.spec.format import DATA_DTYPE

GROUP = tl.constexpr(K_GROUP)

# Two words of four codes are in $4, their two float16 scales in $5; plane i, in $i, is nibble i of
# both. With that nibble at the top of its word, its sign is float16's and its other bits go three
# down.
_PLANE = """
    shl.b32 code, $4, {shift};
    shr.b32 rest, code, 3;
    and.b32 rest, rest, 0x0E000E00;
    and.b32 code, code, 0x80008000;
    or.b32 code, code, rest;
    mul.rn.f16x2 ${plane}, code, $5;"""
_PLANES = "".join(_PLANE.format(plane=plane, shift=12 - 4 * plane) for plane in range(4))
DECODE_PTX = tl.constexpr("{\n.reg .b32 code, rest;" + _PLANES + "\n}")


@triton.jit
def _planes(words, sf):
    """uint16 words of four codes, float16 scales -> four float16 tensors, e2m1 * sf * 2^-14: the
    words' nibbles 0 to 3.
    """
    if INTERPRETED:
        p0 = e2m1_to_f16(words & 0xF) * sf
        p1 = e2m1_to_f16((words >> 4) & 0xF) * sf
        p2 = e2m1_to_f16((words >> 8) & 0xF) * sf
        p3 = e2m1_to_f16(words >> 12) * sf
        return p0, p1, p2, p3
    else:
        return tl.inline_asm_elementwise(
            DECODE_PTX,
            "=&r,=&r,=&r,=&r,r,r",
            [words, sf],
            dtype=(tl.float16, tl.float16, tl.float16, tl.float16),
            is_pure=True,
            pack=2,
        )


@triton.jit
def _decode(words, scales, R: tl.constexpr, BK: tl.constexpr):
    """words uint16 [R, BK/4], scales uint8 [R, BK/16] -> float16 [R, BK], e2m1 * sf * 2^-14.

    K is reordered alike in both operands, within each GROUP: the words' first nibbles, then their
    second, ...: joining the planes so moves no data. The order does not depend on BK, nor do sums.
    """
    sf = tl.broadcast_to(e4m3_to_f16(scales)[:, :, None], (R, BK // 16, 4)).reshape(R, BK // 4)
    p0, p1, p2, p3 = _planes(words, sf)
    planes = tl.join(tl.join(p0, p2), tl.join(p1, p3))  # [R, BK/4, 2, 2], read as plane 0, 1, 2, 3
    planes = planes.reshape(R, BK // GROUP, GROUP // 4, 2, 2)
    return planes.permute(0, 1, 3, 4, 2).reshape(R, BK)


@triton.jit
def _load_step(data, rows, unit, stride, units, EVEN_K: tl.constexpr):
    """One step of an operand, in bytes, words or decoded elements [R, units]; zeros beyond K."""
    at = data + rows[:, None].to(tl.int64) * stride + unit[None, :]
    if EVEN_K:
        return tl.load(at)
    else:
        return tl.load(at, mask=(unit < units)[None, :], other=0)


@triton.jit
def _load_scales(scales, rows, k, stride, K, BK: tl.constexpr, EVEN_K: tl.constexpr):
    """One step of an operand's scales, uint8 [R, BK/16]; zeros beyond K: padding is not read."""
    block = k // BLOCK + tl.arange(0, BK // BLOCK)
    at = scales + scale_offsets(rows[:, None], block[None, :], stride, True)
    if EVEN_K:
        return tl.load(at)
    else:
        return tl.load(at, mask=(block < K // BLOCK)[None, :], other=0)


@triton.jit
def _decode_kernel(
    words, scales, out, M, K, stride, scale_stride, out_stride, R: tl.constexpr, C: tl.constexpr
):
    """out float16 [M, K rounded up to GROUP]: what _decode makes of each group, zeros beyond K."""
    rows = tl.program_id(0) * R + tl.arange(0, R)
    k = tl.program_id(1) * C
    read = tl.minimum(rows, M - 1)
    unit = k // 4 + tl.arange(0, C // 4)
    codes = _load_step(words, read, unit, stride, K // 4, False)
    values = _decode(codes, _load_scales(scales, read, k, scale_stride, K, C, False), R, C)
    columns = k + tl.arange(0, C)
    at = out + rows[:, None].to(tl.int64) * out_stride + columns[None, :]
    tl.store(at, values, mask=(rows < M)[:, None] & (columns < out_stride)[None, :])


@triton.jit
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

    CODES: tl.constexpr = 2 if NATIVE else 4  # a byte for the hardware, a word to decode
    acc = tl.zeros((BN, BM), tl.float32)
    for k in range(0, K, BK):
        unit = k // CODES + tl.arange(0, BK // CODES)
        w = _load_step(b, n_read, unit, b_stride, K // CODES, EVEN_K)
        w_sf = _load_scales(b_scales, n_read, k, scale_stride, K, BK, EVEN_K)
        if A_DECODED:
            x = _load_step(a, m_read, k + tl.arange(0, BK), a_stride, a_stride, EVEN_K)
            acc = tl.dot(_decode(w, w_sf, BN, BK), x.T, acc)
        else:
            x = _load_step(a, m_read, unit, a_stride, K // CODES, EVEN_K)
            x_sf = _load_scales(a_scales, m_read, k, scale_stride, K, BK, EVEN_K)
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
    if HAS_BIAS:
        added = to_f32(tl.load(bias + n_read))
        acc = tl.fma(acc, factor, tl.broadcast_to(added[:, None], (BN, BM)))
    else:
        acc *= factor
    at = out + m[None, :].to(tl.int64) * N + n[:, None]
    tl.store(at, from_f32(acc, out.dtype.element_ty), mask=(m < M)[None, :] & (n < N)[:, None])


def _words(data: Tensor) -> Tensor:
    """Packed uint8 [R, K/2] as uint16 [R, K/4]; copied only if its rows do not start on words."""
    if data.storage_offset() % 2 or data.stride(0) % 2:
        data = data.clone(memory_format=torch.contiguous_format)
    return data.view(torch.uint16)


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
        a, b = _words(a), _words(b)
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
