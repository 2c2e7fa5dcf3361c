"""Rows grouped by expert, as a mixture of experts multiplies them.

Expert-major rows [R, ...]: those of expert e are offsets[e] .. offsets[e+1] - 1, with offsets int32
[E+1] on the device, offsets[0] = 0. R is what the host knows (tokens times top_k); rows from
offsets[E] on are nobody's: ids outside the local experts leave them over.

Their scales, grouped: the swizzled layout of spec/swizzle.py, each expert's rows from a 128-row
scale tile of their own,

    first_tile(e) = offsets[e] // 128 + e

found without a sum over the experts before, and without a wait for the device: whatever the
offsets, ceil(R / 128) + E - 1 tiles hold every expert apart. Bytes between are padding, 0x00.
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
"""Local experts of a call: a kernel keeps a table of them."""


def grouped_scales_shape(rows: Size, experts: int, k: Size) -> tuple[Size, Size]:
    """(128 * tiles, Kp): the grouped scales' buffer for `rows` rows of `k` elements."""
    padded_rows, padded_blocks = swizzled_shape(rows, k)
    return padded_rows + TILE_ROWS * (experts - 1), padded_blocks  # type: ignore[return-value]


def first_tiles(offsets: Tensor) -> Tensor:
    """The scale tile that each expert's rows start at: int64 [E]."""
    experts = torch.arange(offsets.numel() - 1, device=offsets.device)
    return offsets[:-1].long() // TILE_ROWS + experts


def expert_of_rows(offsets: Tensor, rows: int) -> Tensor:
    """Whose each row is: int64 [rows], E for nobody's."""
    index = torch.arange(rows, device=offsets.device, dtype=offsets.dtype)
    return torch.searchsorted(offsets[1:].contiguous(), index, right=True)


def scale_rows(offsets: Tensor, rows: int) -> Tensor:
    """Where in the grouped buffer each row's scales are: int64 [rows], -1 for nobody's."""
    expert = expert_of_rows(offsets, rows)
    known = expert.clamp(max=offsets.numel() - 2)
    start = first_tiles(offsets)[known] * TILE_ROWS - offsets[known]
    row = torch.arange(rows, device=offsets.device)
    return torch.where(expert < offsets.numel() - 1, start + row, -1)


def swizzle_grouped_scales(scales: Tensor, offsets: Tensor, rows: int | None = None) -> Tensor:
    """Linear scales [R, K/16] of expert-major rows -> the grouped buffer, padding 0x00; for `rows`
    rows where those after the scales' own are nobody's.
    """
    (own, blocks), experts = scales.shape, offsets.numel() - 1
    padded_rows, _ = grouped_scales_shape(rows or own, experts, blocks * BLOCK)
    # Nobody's rows go to one row more than there is.
    at = scale_rows(offsets, own)
    spread = scales.new_zeros(padded_rows + 1, blocks, dtype=torch.uint8)
    spread[torch.where(at < 0, padded_rows, at)] = scales.view(torch.uint8)
    return swizzle_scales(spread[:padded_rows]).view(scales.dtype)


def unswizzle_grouped_scales(scales: Tensor, offsets: Tensor, rows: int, k: int) -> Tensor:
    """The grouped buffer -> linear scales [rows, k/16]; nobody's rows are 0x00."""
    linear = unswizzle_scales(scales, scales.shape[0], k).view(torch.uint8)
    at = scale_rows(offsets, rows)
    padded = F.pad(linear, (0, 0, 0, 1))  # a last row of zeros, for -1
    return padded[at].view(scales.dtype)


def route(topk_ids: Tensor, experts: int, expert_offset: int) -> tuple[Tensor, Tensor]:
    """Where the rows of tokens go: ids int [M, top_k], local expert = id - expert_offset.

    Returns offsets int32 [E+1], and positions int32 [M, top_k]: the row of each (token, choice), in
    the order of tokens, then choices, within an expert; -1 where the id is not of a local expert.
    Nothing waits for the device.
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
