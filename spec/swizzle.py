"""The two layouts of the block scales.

linear     [M, K/16] row-major, as checkpoints hold them.

swizzled   [Mp, Kp] = [M, K/16] rounded up to (128, 4), as tcgen05.mma and cuBLASLt read them. The
           buffer is a row-major grid of 512-byte tiles. A tile holds the scales of 128 rows and
           4 blocks (64 elements of K), with rows 32 apart side by side:

               byte    0  1  2  3 | 4  5  6  7 | 8  9 10 11 |12 13 14 15
               row  0: k0 k1 k2 k3  row 32: ..   row 64: ..   row 96: ..
               row  1: (the next 16 bytes)  ...

           offset(m, k) = ((m//128) * (Kp//4) + k//4) * 512 + (m%32)*16 + ((m//32)%4)*4 + k%4

           Every padding byte is 0x00, because a stale NaN would make a whole row of a GEMM NaN.
"""

from collections.abc import Sequence
from math import prod
from typing import TypeVar

import torch
import torch.nn.functional as F
from einops import rearrange
from torch import Tensor

from nvfp4.spec.format import BLOCK, LINEAR

TILE_ROWS = 128
TILE_BLOCKS = 4

Size = TypeVar("Size", bound=int)


def _round_up(size: Size, multiple: int) -> Size:
    return (size + multiple - 1) // multiple * multiple  # type: ignore[return-value]


def swizzled_shape(rows: Size, k: Size) -> tuple[Size, Size]:
    """The shape (Mp, Kp) of the swizzled scales of `rows` rows of `k` elements."""
    return _round_up(rows, TILE_ROWS), _round_up(k // BLOCK, TILE_BLOCKS)  # type: ignore[return-value]


def scales_shape(shape: Sequence[int], scale_layout: str) -> tuple[int, ...]:
    """The shape of the scales of a tensor [..., K] in either layout."""
    *lead, k = shape
    return (*lead, k // BLOCK) if scale_layout == LINEAR else swizzled_shape(prod(lead), k)


def swizzle_scales(scales: Tensor) -> Tensor:
    """Write linear scales [..., K/16] to a swizzled buffer [Mp, Kp], M the product of [...]."""
    flat = scales.reshape(-1, scales.shape[-1])
    rows, blocks = flat.shape
    padded_rows, padded_blocks = swizzled_shape(rows, blocks * BLOCK)
    # Padding and permuting only move bytes, and every device can move uint8.
    padded = F.pad(flat.view(torch.uint8), (0, padded_blocks - blocks, 0, padded_rows - rows))
    tiles = rearrange(padded, "(mt q r) (kt c) -> mt kt r q c", q=4, r=32, c=TILE_BLOCKS)
    return tiles.reshape(padded_rows, padded_blocks).view(scales.dtype)


def unswizzle_scales(scales: Tensor, rows: int, k: int) -> Tensor:
    """Read linear scales [rows, k/16] from the swizzled buffer [Mp, Kp]."""
    padded_rows, padded_blocks = swizzled_shape(rows, k)
    tiles = (
        scales.reshape(-1)
        .view(torch.uint8)
        .view(padded_rows // TILE_ROWS, padded_blocks // TILE_BLOCKS, 32, 4, TILE_BLOCKS)
    )
    padded = rearrange(tiles, "mt kt r q c -> (mt q r) (kt c)")
    return padded[:rows, : k // BLOCK].contiguous().view(scales.dtype)
