"""Operands decoded once, for every program that multiplies them: float16, e2m1 * sf * 2^-14, in the
order of K that decode gives them (gemm.py).
"""

import torch
import triton
import triton.language as tl
from torch import Tensor

from nvfp4.backends.triton.gemm.config import K_GROUP
from nvfp4.backends.triton.gemm.multiply import (
    await_previous,
    count_from_zero,
    decode,
    load_scales,
    load_step,
)
from nvfp4.backends.triton.runtime.architecture import overlaps
from nvfp4.backends.triton.runtime.launch import Launch, cdiv


@triton.jit(do_not_specialize=["tiles", "M"])
def _decode_kernel(
    words, scales, out, arrived, tiles, M, K, stride, scale_stride, out_stride,
    R: tl.constexpr, C: tl.constexpr, SM: tl.constexpr,
):  # fmt: skip
    """out float16 [M, K rounded up to GROUP]: what decode makes of each group, zeros beyond K."""
    await_previous(SM)
    count_from_zero(arrived, tiles)
    rows = tl.program_id(0) * R + tl.arange(0, R)
    k = tl.program_id(1) * C
    read = tl.minimum(rows, M - 1)
    unit = k // 4 + tl.arange(0, C // 4)
    codes = load_step(words, read, unit, stride, K // 4, False)
    values = decode(codes, load_scales(scales, read, k, scale_stride, K, C, False), R, C, SM)
    columns = k + tl.arange(0, C)
    at = out + rows[:, None].to(tl.int64) * out_stride + columns[None, :]
    tl.store(at, values, mask=(rows < M)[:, None] & (columns < out_stride)[None, :])


def decoded_width(k: int) -> int:
    """Columns of a decoded operand: whole groups."""
    return cdiv(k, K_GROUP) * K_GROUP


def plan_decode(
    words: Tensor, scales: Tensor, k: int, sm: int, arrived: Tensor | None
) -> tuple[Tensor, Launch]:
    """words uint16 [M, k/4] and their scales -> float16 [M, decoded_width(k)], and the launch,
    which zeroes `arrived`, if given.
    """
    m, tile_rows, columns, width = words.shape[0], 8, 512, decoded_width(k)
    out = torch.empty(m, width, dtype=torch.float16, device=words.device)
    tiles = 0 if arrived is None else arrived.numel()
    launch = Launch(
        _decode_kernel,
        (cdiv(m, tile_rows), cdiv(width, columns)),
        (words, scales, out, arrived, tiles, m, k, words.stride(0), scales.shape[1], width),
        {"R": tile_rows, "C": columns, "SM": sm},
        overlaps=overlaps(sm),
    )
    return out, launch
