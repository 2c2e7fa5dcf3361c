"""Operands decoded to float16, e2m1 * sf * 2^-14, in the order of K that the GEMM multiplies in.

A packed operand is decoded in registers step by step, or once by a kernel of its own.
"""

import torch
import triton
import triton.language as tl
from torch import Tensor

from nvfp4.backends.triton.device.floats import BLOCK, INTERPRETED, e2m1_to_f16, e4m3_to_f16
from nvfp4.backends.triton.device.pdl import await_previous
from nvfp4.backends.triton.gemm.config import K_GROUP
from nvfp4.backends.triton.gemm.load import load_scales, load_step
from nvfp4.backends.triton.gemm.split_k import count_from_zero
from nvfp4.backends.triton.runtime.architecture import overlaps
from nvfp4.backends.triton.runtime.launch import Launch, cdiv

GROUP = tl.constexpr(K_GROUP)

# Plane i is nibble i of the words. Of two words of four codes, in `words`, these make the planes of
# the odd nibbles, or of the even ones, times the two float16 scales in `scales`. A byte of `codes`
# holds one code as the upper byte of a float16: the sign on top, the other bits three down from
# there. Its other bits are what was there, until a plane is cut out.
_PLANES = """
    shr.b32 rest, {codes}, 3;
    lop3.b32 codes, {codes}, rest, 0x80808080, 0xE4;  // the third's ones choose the first
    and.b32 plane, codes, 0x8E008E00;
    mul.rn.f16x2 {upper}, plane, {scales};
    shl.b32 codes, codes, 8;
    and.b32 plane, codes, 0x8E008E00;
    mul.rn.f16x2 {lower}, plane, {scales};"""


def planes_ptx(odd: bool, lower: str, upper: str, words: str, scales: str) -> str:
    registers = "{.reg .b32 codes, rest, plane, even;"
    even = "" if odd else f"shl.b32 even, {words}, 4;"
    codes = words if odd else "even"
    return registers + even + _PLANES.format(**locals()) + "}"


DECODE_PTX = tl.constexpr(
    planes_ptx(True, "$1", "$3", "$4", "$5") + planes_ptx(False, "$0", "$2", "$4", "$5")
)


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
def decode(words, scales, R: tl.constexpr, BK: tl.constexpr, SM: tl.constexpr):
    """words uint16 [R, BK/4], scales uint8 [R, BK/16] -> float16 [R, BK], e2m1 * sf * 2^-14.

    K is reordered alike in both operands, within each GROUP: the words' nibbles 1, then their 3, 0
    and 2. Joining the planes so moves no data. The order does not depend on BK, nor do sums.
    """
    sf = tl.broadcast_to(e4m3_to_f16(scales, SM)[:, :, None], (R, BK // 16, 4)).reshape(R, BK // 4)
    p0, p1, p2, p3 = _planes(words, sf)
    planes = tl.join(tl.join(p1, p0), tl.join(p3, p2))  # [R, BK/4, 2, 2], read as plane 1, 3, 0, 2
    planes = planes.reshape(R, BK // GROUP, GROUP // 4, 2, 2)
    return planes.permute(0, 1, 3, 4, 2).reshape(R, BK)


@triton.jit
def store_for_gemm(values, out, rows, M, out_stride, R: tl.constexpr, C: tl.constexpr):
    """values float16 [R, C/16, 16], columns program_id(1) * C and on of out, in decode's order: an
    element's place is told by its nibble, and its word in the group.
    """
    # A block's four words are side by side in each plane: its thread stores them as they are.
    block = tl.program_id(1) * (C // BLOCK) + tl.arange(0, C // BLOCK)
    word = (block * 4)[:, None, None] + tl.arange(0, 4)
    place = word // (GROUP // 4) * GROUP + word % (GROUP // 4)
    at = out + rows.to(tl.int64)[None, :, None] * out_stride + place
    inside = (rows < M)[None, :, None] & (place < out_stride)
    nibbles = values.reshape(R, C // BLOCK, 4, 2, 2).permute(1, 0, 2, 3, 4)
    even, odd = tl.split(nibbles)
    n0, n2 = tl.split(even)
    n1, n3 = tl.split(odd)
    tl.store(at, n1, mask=inside)
    tl.store(at + GROUP // 4, n3, mask=inside)
    tl.store(at + GROUP // 4 * 2, n0, mask=inside)
    tl.store(at + GROUP // 4 * 3, n2, mask=inside)


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


def words_of(data: Tensor) -> Tensor:
    """Packed uint8 [..., K/2] as uint16 [..., K/4]; copied only if rows do not start on words."""
    if data.storage_offset() % 2 or any(stride % 2 for stride in data.stride()[:-1]):
        data = data.clone(memory_format=torch.contiguous_format)
    return data.view(torch.uint16)
