"""Device functions that read one step of a GEMM operand and of its scales."""

import triton
import triton.language as tl

from nvfp4.backends.triton.device.floats import BLOCK
from nvfp4.backends.triton.device.tiles import scale_offsets


@triton.jit
def load_step(data, rows, unit, stride, units, EVEN_K: tl.constexpr, row_mask=None):
    """Load one step of an operand, [R, units] of bytes, words or decoded elements.

    Zeros beyond K, and in rows that row_mask leaves out, if it is given.
    """
    at = data + rows[:, None].to(tl.int64) * stride + unit[None, :]
    if row_mask is not None:
        return tl.load(at, mask=row_mask[:, None] & (unit < units)[None, :], other=0)
    elif EVEN_K:
        return tl.load(at)
    else:
        return tl.load(at, mask=(unit < units)[None, :], other=0)


@triton.jit
def load_scales(scales, rows, k, stride, K, BK: tl.constexpr, EVEN_K: tl.constexpr):
    """Load one step of an operand's scales, uint8 [R, BK/16]; zeros beyond K."""
    block = k // BLOCK + tl.arange(0, BK // BLOCK)
    at = scales + scale_offsets(rows[:, None], block[None, :], stride, True)
    if EVEN_K:
        return tl.load(at)
    else:
        return tl.load(at, mask=(block < K // BLOCK)[None, :], other=0)
