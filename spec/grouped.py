"""Rows grouped by expert, as a mixture of experts multiplies them, and the layout of their scales.

Rows [R, ...] are sorted by expert: expert e has the rows offsets[e] .. offsets[e+1] - 1. offsets is
int32 [E+1] on the device, with offsets[0] = 0. The host knows only R, tokens times top_k. Rows from
offsets[E] on are unassigned: they are left over where ids are outside the local experts.

The grouped scales have the swizzled layout of spec/swizzle.py. Each expert's rows begin at a
128-row scale tile:

    first_tile(e) = offsets[e] // 128 + e

This needs no sum over earlier experts and no wait for the device. ceil(R / 128) + E - 1 tiles keep
all experts apart, whatever the offsets are. Bytes between experts are padding, 0x00.
"""

import torch
import torch.nn.functional as F
from torch import Tensor

from nvfp4.spec.format import BLOCK
from nvfp4.spec.swizzle import (
    TILE_ROWS,
    Size,
    swizzle_scales,
    swizzled_shape,
    unswizzle_scales,
)

MAX_EXPERTS = 512
"""The most local experts of a call, because a kernel keeps a table of them."""


def grouped_scales_shape(rows: Size, experts: int, k: Size) -> tuple[Size, Size]:
    """The shape (128 * tiles, Kp) of the grouped scales of `rows` rows of `k` elements."""
    padded_rows, padded_blocks = swizzled_shape(rows, k)
    return padded_rows + TILE_ROWS * (experts - 1), padded_blocks  # type: ignore[return-value]


def first_tiles(offsets: Tensor) -> Tensor:
    """The scale tile at which each expert's rows begin: int64 [E]."""
    experts = torch.arange(offsets.numel() - 1, device=offsets.device)
    return offsets[:-1].long() // TILE_ROWS + experts


def expert_of_rows(offsets: Tensor, rows: int) -> Tensor:
    """The expert of each row: int64 [rows], E for unassigned rows."""
    index = torch.arange(rows, device=offsets.device, dtype=offsets.dtype)
    return torch.searchsorted(offsets[1:].contiguous(), index, right=True)


def scale_rows(offsets: Tensor, rows: int) -> Tensor:
    """The row of the grouped buffer with each row's scales: int64 [rows], -1 if unassigned."""
    expert = expert_of_rows(offsets, rows)
    known = expert.clamp(max=offsets.numel() - 2)
    start = first_tiles(offsets)[known] * TILE_ROWS - offsets[known]
    row = torch.arange(rows, device=offsets.device)
    return torch.where(expert < offsets.numel() - 1, start + row, -1)


def swizzle_grouped_scales(scales: Tensor, offsets: Tensor, rows: int | None = None) -> Tensor:
    """Write linear scales [R, K/16] of rows sorted by expert to a grouped buffer, padding 0x00.

    With `rows`, the buffer is for so many rows, of which those from R on are unassigned.
    """
    (own, blocks), experts = scales.shape, offsets.numel() - 1
    padded_rows, _ = grouped_scales_shape(rows or own, experts, blocks * BLOCK)
    # Unassigned rows are written to an extra last row, which is cut off.
    at = scale_rows(offsets, own)
    spread = scales.new_zeros(padded_rows + 1, blocks, dtype=torch.uint8)
    spread[torch.where(at < 0, padded_rows, at)] = scales.view(torch.uint8)
    return swizzle_scales(spread[:padded_rows]).view(scales.dtype)


def unswizzle_grouped_scales(scales: Tensor, offsets: Tensor, rows: int, k: int) -> Tensor:
    """Read linear scales [rows, k/16] from the grouped buffer; unassigned rows are 0x00."""
    linear = unswizzle_scales(scales, scales.shape[0], k).view(torch.uint8)
    at = scale_rows(offsets, rows)
    padded = F.pad(linear, (0, 0, 0, 1))  # a last row of zeros, for -1
    return padded[at].view(scales.dtype)


def route(topk_ids: Tensor, experts: int, expert_offset: int) -> tuple[Tensor, Tensor]:
    """Sort the choices of tokens, int [M, top_k], by local expert, which is id - expert_offset.

    Returns offsets int32 [E+1], and positions int32 [M, top_k]: the row of each (token, choice), -1
    where the id is not of a local expert. Within an expert, rows are in the order of tokens, then
    of choices. Nothing waits for the device.
    """
    local = topk_ids.flatten().long() - expert_offset
    expert = torch.where((local >= 0) & (local < experts), local, experts)
    by_expert, order = torch.sort(expert, stable=True)
    edges = torch.arange(experts + 1, device=topk_ids.device)
    offsets = torch.searchsorted(by_expert, edges).int()
    rows = torch.arange(expert.numel(), device=topk_ids.device)
    positions = torch.empty_like(order).scatter_(0, order, rows)
    positions = torch.where(expert < experts, positions, -1)
    return offsets, positions.int().view(topk_ids.shape)
