"""Decoding packed operands to float16, e2m1 * sf * 2^-14, in the order of K that the GEMM uses.

The GEMM decodes B in registers, step by step. A kernel of its own decodes A once, since every
program multiplies it.
"""

import torch
import triton
import triton.language as tl
from torch import Tensor

from nvfp4.backends.triton.device.floats import BLOCK, INTERPRETED, e2m1_to_f16, e4m3_to_f16
from nvfp4.backends.triton.device.pdl import wait_for_previous_kernel
from nvfp4.backends.triton.gemm.config import K_GROUP
from nvfp4.backends.triton.gemm.load import load_scales, load_step
from nvfp4.backends.triton.gemm.split_k import zero_tile_counters
from nvfp4.backends.triton.runtime.architecture import supports_pdl
from nvfp4.backends.triton.runtime.launch import Launch, cdiv

GROUP = tl.constexpr(K_GROUP)
WORD_CODES = tl.constexpr(4)
"""Codes of a uint16 word."""

# Plane i is nibble i of every word. The PTX takes two words of four codes in `words` and makes two
# planes, those of the odd or of the even nibbles, times the two float16 scales in `scales`. A byte
# of `codes` becomes the upper byte of a float16: the sign on top, the other bits three below it.
# The byte's remaining bits are garbage until `and` cuts out a plane.
_PLANES = """
    shr.b32 rest, {codes}, 3;
    lop3.b32 codes, {codes}, rest, 0x80808080, 0xE4;  // where the mask is 1, the bit of codes
    and.b32 plane, codes, 0x8E008E00;
    mul.rn.f16x2 {upper}, plane, {scales};
    shl.b32 codes, codes, 8;
    and.b32 plane, codes, 0x8E008E00;
    mul.rn.f16x2 {lower}, plane, {scales};"""


def planes_ptx(odd: bool, lower: str, upper: str, words: str, scales: str) -> str:
    """PTX that decodes the odd or the even nibbles of two words into two float16x2 registers."""
    registers = "{.reg .b32 codes, rest, plane, even;"
    even = "" if odd else f"shl.b32 even, {words}, 4;"
    codes = words if odd else "even"
    planes = _PLANES.format(codes=codes, lower=lower, upper=upper, scales=scales)
    return registers + even + planes + "}"


DECODE_PTX = tl.constexpr(
    planes_ptx(True, "$1", "$3", "$4", "$5") + planes_ptx(False, "$0", "$2", "$4", "$5")
)


@triton.jit
def _planes(words, sf):
    """Decode uint16 words with float16 scales to their nibbles 0 to 3, four float16 tensors."""
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
    """Decode words uint16 [R, BK/4] with scales uint8 [R, BK/16] to float16 [R, BK].

    Both operands have K in the same order: within each GROUP the words' nibbles 1, then 3, 0 and 2.
    Joining the planes in this order moves no data. The order does not depend on BK, so sums do not.
    """
    BLOCKS: tl.constexpr = BK // BLOCK
    BLOCK_WORDS: tl.constexpr = BLOCK // WORD_CODES
    sf = tl.broadcast_to(e4m3_to_f16(scales, SM)[:, :, None], (R, BLOCKS, BLOCK_WORDS))
    sf = sf.reshape(R, BK // WORD_CODES)
    p0, p1, p2, p3 = _planes(words, sf)
    planes = tl.join(tl.join(p1, p0), tl.join(p3, p2))  # [R, BK/4, 2, 2], read as plane 1, 3, 0, 2
    planes = planes.reshape(R, BK // GROUP, GROUP // 4, 2, 2)
    return planes.permute(0, 1, 3, 4, 2).reshape(R, BK)


@triton.jit
def store_for_gemm(values, out, rows, M, out_stride, R: tl.constexpr, C: tl.constexpr):
    """Store values float16 [R, C/16, 16] to columns from program_id(1) * C on, in decode's order.

    An element's column follows from its nibble and its word's place in the group.
    """
    # A block's four words are adjacent in each plane, so its thread stores them without a shuffle.
    block = tl.program_id(1) * (C // BLOCK) + tl.arange(0, C // BLOCK)
    word = (block * 4)[:, None, None] + tl.arange(0, 4)
    column = word // (GROUP // 4) * GROUP + word % (GROUP // 4)
    at = out + rows.to(tl.int64)[None, :, None] * out_stride + column
    inside = (rows < M)[None, :, None] & (column < out_stride)
    nibbles = values.reshape(R, C // BLOCK, 4, 2, 2).permute(1, 0, 2, 3, 4)
    even, odd = tl.split(nibbles)
    n0, n2 = tl.split(even)
    n1, n3 = tl.split(odd)
    tl.store(at, n1, mask=inside)
    tl.store(at + GROUP // 4, n3, mask=inside)
    tl.store(at + GROUP // 4 * 2, n0, mask=inside)
    tl.store(at + GROUP // 4 * 3, n2, mask=inside)


@triton.jit
def decode_tile(
    words, read, scales, scale_rows, out, rows, row_mask, K, stride, scale_stride, out_stride,
    R: tl.constexpr, C: tl.constexpr, SM: tl.constexpr,
):  # fmt: skip
    """Decode a tile [R, C] of words to out float16, from column program_id(1) * C on.

    Rows `read` of words, with rows `scale_rows` of scales, go to `rows` of out where row_mask says
    so. Columns beyond K are zero.
    """
    k = tl.program_id(1) * C
    unit = k // 4 + tl.arange(0, C // 4)
    codes = load_step(words, read, unit, stride, K // 4, False)
    values = decode(codes, load_scales(scales, scale_rows, k, scale_stride, K, C, False), R, C, SM)
    columns = k + tl.arange(0, C)
    at = out + rows[:, None].to(tl.int64) * out_stride + columns[None, :]
    tl.store(at, values, mask=row_mask[:, None] & (columns < out_stride)[None, :])


@triton.jit(do_not_specialize=["tiles", "M"])
def _decode_kernel(
    words, scales, out, tile_counters, tiles, M, K, stride, scale_stride, out_stride,
    R: tl.constexpr, C: tl.constexpr, SM: tl.constexpr,
):  # fmt: skip
    """Decode words to out float16 [M, K rounded up to GROUP]; zeros beyond K."""
    wait_for_previous_kernel(SM)
    zero_tile_counters(tile_counters, tiles)
    rows = tl.program_id(0) * R + tl.arange(0, R)
    read = tl.minimum(rows, M - 1)
    decode_tile(
        words, read, scales, read, out, rows, rows < M, K, stride, scale_stride, out_stride,
        R, C, SM,
    )  # fmt: skip


def decoded_width(k: int) -> int:
    """Columns of a decoded operand: k rounded up to whole groups."""
    return cdiv(k, K_GROUP) * K_GROUP


def plan_decode(
    words: Tensor, scales: Tensor, k: int, sm: int, tile_counters: Tensor | None
) -> tuple[Tensor, Launch]:
    """Plan decoding words uint16 [M, k/4] to float16 [M, decoded_width(k)].

    The launch also zeroes `tile_counters`, if given.
    """
    m, tile_rows, columns, width = words.shape[0], 8, 512, decoded_width(k)
    out = torch.empty(m, width, dtype=torch.float16, device=words.device)
    tiles = 0 if tile_counters is None else tile_counters.numel()
    launch = Launch(
        _decode_kernel,
        (cdiv(m, tile_rows), cdiv(width, columns)),
        (words, scales, out, tile_counters, tiles, m, k, words.stride(0), scales.shape[1], width),
        {"R": tile_rows, "C": columns, "SM": sm},
        launch_pdl=supports_pdl(sm),
    )
    return out, launch


def words_of(data: Tensor) -> Tensor:
    """View packed uint8 [..., K/2] as uint16 [..., K/4]; copy it if rows do not start on words."""
    if data.storage_offset() % 2 or any(stride % 2 for stride in data.stride()[:-1]):
        data = data.clone(memory_format=torch.contiguous_format)
    return data.view(torch.uint16)
