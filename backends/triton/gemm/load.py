"""Device functions that read one step of a GEMM operand and of its scales."""

import triton
import triton.language as tl
from triton.language.target_info import cuda_capability_geq

from nvfp4.backends.triton.device.floats import BLOCK, INTERPRETED
from nvfp4.backends.triton.device.tiles import scale_offsets
from nvfp4.backends.triton.gemm import config
from nvfp4.backends.triton.runtime import architecture

FENCES_COPIES = tl.constexpr(architecture.fences_copies())
ASYNC_MIN_M = tl.constexpr(config.ASYNC_MIN_M)
ASYNC_MIN_N = tl.constexpr(config.ASYNC_MIN_N)


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


@triton.jit
def fenced(operand, M: tl.constexpr, N: tl.constexpr):
    """Return an operand of a product [M, N] that wgmma or tcgen05.mma may read in shared memory.

    Without a fence after cp.async, it goes through registers: Triton fences what it stores itself.
    The loads stay pipelined.
    """
    if FENCES_COPIES or INTERPRETED or M < ASYNC_MIN_M or N < ASYNC_MIN_N:
        return operand
    elif cuda_capability_geq(9, 0) and not cuda_capability_geq(12, 0):
        SIZE: tl.constexpr = operand.dtype.primitive_bitwidth // 8
        return tl.inline_asm_elementwise(
            "mov.b32 $0, $1;",
            "=r,r",
            [operand],
            dtype=operand.dtype,
            is_pure=True,
            pack=4 // SIZE,
        )
    else:
        return operand
