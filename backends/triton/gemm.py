"""The GEMM's device functions, for one weight (mm.py) and for one an expert (grouped_mm.py).

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

from nvfp4.backends.triton.mm_config import K_GROUP
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
def decode(words, scales, R: tl.constexpr, BK: tl.constexpr):
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
def load_step(data, rows, unit, stride, units, EVEN_K: tl.constexpr):
    """One step of an operand, in bytes, words or decoded elements [R, units]; zeros beyond K."""
    at = data + rows[:, None].to(tl.int64) * stride + unit[None, :]
    if EVEN_K:
        return tl.load(at)
    else:
        return tl.load(at, mask=(unit < units)[None, :], other=0)


@triton.jit
def load_scales(scales, rows, k, stride, K, BK: tl.constexpr, EVEN_K: tl.constexpr):
    """One step of an operand's scales, uint8 [R, BK/16]; zeros beyond K: padding is not read."""
    block = k // BLOCK + tl.arange(0, BK // BLOCK)
    at = scales + scale_offsets(rows[:, None], block[None, :], stride, True)
    if EVEN_K:
        return tl.load(at)
    else:
        return tl.load(at, mask=(block < K // BLOCK)[None, :], other=0)


@triton.jit
def multiply(
    a, a_rows, a_scales, a_scale_rows, a_stride,
    b, b_rows, b_scales, b_scale_rows, b_stride, scale_stride, K,
    NATIVE: tl.constexpr, A_DECODED: tl.constexpr, B_DECODED: tl.constexpr, EVEN_K: tl.constexpr,
    BM: tl.constexpr, BN: tl.constexpr, BK: tl.constexpr,
):  # fmt: skip
    """Rows [BM] of A times rows [BN] of B: float32 [BN, BM]; each operand's rows, and theirs among
    its scales.
    """
    CODES: tl.constexpr = 2 if NATIVE else 4  # a byte for the hardware, a word to decode
    acc = tl.zeros((BN, BM), tl.float32)
    for k in range(0, K, BK):
        unit = k // CODES + tl.arange(0, BK // CODES)
        element = k + tl.arange(0, BK)
        if B_DECODED:
            w = load_step(b, b_rows, element, b_stride, b_stride, EVEN_K)
            x = load_step(a, a_rows, element, a_stride, a_stride, EVEN_K)
            acc = tl.dot(w, x.T, acc)
        else:
            w = load_step(b, b_rows, unit, b_stride, K // CODES, EVEN_K)
            w_sf = load_scales(b_scales, b_scale_rows, k, scale_stride, K, BK, EVEN_K)
            if A_DECODED:
                x = load_step(a, a_rows, element, a_stride, a_stride, EVEN_K)
                acc = tl.dot(decode(w, w_sf, BN, BK), x.T, acc)
            else:
                x = load_step(a, a_rows, unit, a_stride, K // CODES, EVEN_K)
                x_sf = load_scales(a_scales, a_scale_rows, k, scale_stride, K, BK, EVEN_K)
                if NATIVE:
                    w_sf = w_sf.to(tl.float8e4nv, bitcast=True)
                    x_sf = x_sf.to(tl.float8e4nv, bitcast=True)
                    acc = tl.dot_scaled(w, w_sf, "e2m1", x.T, x_sf, "e2m1", acc)
                else:
                    acc = tl.dot(decode(w, w_sf, BN, BK), decode(x, x_sf, BM, BK).T, acc)
    if not NATIVE:
        acc *= E2M1_F16_SCALE * E2M1_F16_SCALE
    return acc


@triton.jit
def store(
    acc, factor, bias, out, m, n, m_end, N, n_read, HAS_BIAS: tl.constexpr,
    BM: tl.constexpr, BN: tl.constexpr,
):  # fmt: skip
    """out[m, n] = acc[n, m] * factor (+ bias[n]), for m < m_end and n < N; n_read: n within N."""
    if HAS_BIAS:
        added = to_f32(tl.load(bias + n_read))
        acc = tl.fma(acc, factor, tl.broadcast_to(added[:, None], (BN, BM)))
    else:
        acc *= factor
    at = out + m[None, :].to(tl.int64) * N + n[:, None]
    inside = (m < m_end)[None, :] & (n < N)[:, None]
    tl.store(at, from_f32(acc, out.dtype.element_ty), mask=inside)


def words_of(data: Tensor) -> Tensor:
    """Packed uint8 [..., K/2] as uint16 [..., K/4]; copied only if rows do not start on words."""
    if data.storage_offset() % 2 or any(stride % 2 for stride in data.stride()[:-1]):
        data = data.clone(memory_format=torch.contiguous_format)
    return data.view(torch.uint16)
