"""The GEMM's mainloop and epilogue, shared by mm.py and grouped_mm.py.

Operands are swapped: the accumulator is [BN, BM] = B A^T. The weights fill the wide side of the
tensor-core instruction, and few tokens fill the narrow one.

Before Blackwell both operands are float16, which holds e2m1 * sf * 2^-14 exactly. The float16
tensor cores multiply them and accumulate in float32, so NVFP4's products are exact. Every program
multiplies A's rows, so these are decoded beforehand (decode.py); B is decoded here. On Blackwell
tl.dot_scaled is the hardware's block-scaled instruction.
"""

import triton
import triton.language as tl

from nvfp4.backends.triton.device.floats import E2M1_F16_SCALE, from_f32, to_f32
from nvfp4.backends.triton.gemm.decode import decode
from nvfp4.backends.triton.gemm.load import fenced, load_scales, load_step
from nvfp4.backends.triton.runtime import architecture

BLACKWELL = tl.constexpr(architecture.BLACKWELL)


@triton.jit
def multiply(
    a, a_rows, a_scales, a_scale_rows, a_stride,
    b, b_rows, b_scales, b_scale_rows, b_stride, scale_stride, begin, end, K,
    SM: tl.constexpr, EVEN_K: tl.constexpr,
    BM: tl.constexpr, BN: tl.constexpr, BK: tl.constexpr, a_row_mask=None,
):  # fmt: skip
    """Multiply rows [BM] of A by rows [BN] of B over elements [begin, end) of K: float32 [BN, BM].

    *_rows are an operand's rows, *_scale_rows those rows' place in its scales. a_row_mask, if
    given, masks the loads of a decoded A.
    """
    CODES: tl.constexpr = 2 if SM >= BLACKWELL else 4  # codes a unit: a byte or a uint16
    acc = tl.zeros((BN, BM), tl.float32)
    for k in range(begin, end, BK):
        unit = k // CODES + tl.arange(0, BK // CODES)
        element = k + tl.arange(0, BK)
        if SM >= BLACKWELL:
            w = fenced(load_step(b, b_rows, unit, b_stride, K // CODES, EVEN_K), BN, BM)
            x = fenced(load_step(a, a_rows, unit, a_stride, K // CODES, EVEN_K), BN, BM)
            w_sf = load_scales(b_scales, b_scale_rows, k, scale_stride, K, BK, EVEN_K)
            x_sf = load_scales(a_scales, a_scale_rows, k, scale_stride, K, BK, EVEN_K)
            w_sf = w_sf.to(tl.float8e4nv, bitcast=True)
            x_sf = x_sf.to(tl.float8e4nv, bitcast=True)
            acc = tl.dot_scaled(w, w_sf, "e2m1", x.T, x_sf, "e2m1", acc)
        else:
            x = load_step(a, a_rows, element, a_stride, a_stride, EVEN_K, a_row_mask)
            x = fenced(x, BN, BM)
            words = load_step(b, b_rows, unit, b_stride, K // CODES, EVEN_K)
            w_sf = load_scales(b_scales, b_scale_rows, k, scale_stride, K, BK, EVEN_K)
            w = decode(words, w_sf, BN, BK, SM)
            acc = tl.dot(w, x.T, acc)
    if SM < BLACKWELL:
        acc *= E2M1_F16_SCALE * E2M1_F16_SCALE
    return acc


@triton.jit
def store(
    acc, factor, bias, out, m, n, m_end, N, n_read, HAS_BIAS: tl.constexpr,
    BM: tl.constexpr, BN: tl.constexpr,
):  # fmt: skip
    """Store out[m, n] = acc[n, m] * factor (+ bias[n]), for m < m_end and n < N.

    n_read: n clamped to N - 1.
    """
    if HAS_BIAS:
        added = to_f32(tl.load(bias + n_read))
        acc = tl.fma(acc, factor, tl.broadcast_to(added[:, None], (BN, BM)))
    else:
        acc *= factor
    at = out + m[None, :].to(tl.int64) * N + n[:, None]
    inside = (m < m_end)[None, :] & (n < N)[:, None]
    tl.store(at, from_f32(acc, out.dtype.element_ty), mask=inside)
