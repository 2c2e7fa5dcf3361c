"""Device functions that read one step of a GEMM operand and of its scales."""

import triton
import triton.language as tl

from nvfp4.backends.triton.device.floats import BLOCK
from nvfp4.backends.triton.device.tiles import scale_offsets


@triton.jit
def load_step(data, rows, unit, stride, units, EVEN_K: tl.constexpr, live=None):
    """One step of an operand, in bytes, words or decoded elements [R, units]; zeros beyond K, and
    in rows that are not live.
    """
    at = data + rows[:, None].to(tl.int64) * stride + unit[None, :]
    if live is not None:
        return tl.load(at, mask=live[:, None] & (unit < units)[None, :], other=0)
    elif EVEN_K:
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
