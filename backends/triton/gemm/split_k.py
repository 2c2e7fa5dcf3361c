"""Split-K: several programs each sum a part of K of one tile; the last to finish reduces them.

It adds the partial sums in the order of K, whichever came last: the same bits each time.
"""

from typing import NamedTuple

import torch
import triton
import triton.language as tl
from torch import Tensor

from nvfp4.backends.triton.gemm.config import MmConfig
from nvfp4.backends.triton.runtime.launch import cdiv


@triton.jit
def zero_tile_counters(tile_counters, tiles):
    """Zero the tile counters of the GEMM that comes after; `tiles` is their number."""
    if tile_counters is not None and tl.program_id(0) + tl.program_id(1) == 0:
        for first in range(0, tiles, 1024):
            at = first + tl.arange(0, 1024)
            tl.store(tile_counters + at, tl.zeros((1024,), tl.int32), mask=at < tiles)


@triton.jit
def store_partial(
    acc, partial_sums, split, tile_counter, BM: tl.constexpr, BN: tl.constexpr, SPLITS: tl.constexpr
):
    """Store a split's partial sum and count it; return whether it is the tile's last."""
    at = split * (BN * BM) + tl.arange(0, BN)[:, None] * BM + tl.arange(0, BM)[None, :]
    tl.store(partial_sums + at, acc)
    tl.debug_barrier()  # every thread has stored before one counts
    return tl.atomic_add(tile_counter, 1, sem="acq_rel") == SPLITS - 1


@triton.jit
def reduce_partials(partial_sums, BM: tl.constexpr, BN: tl.constexpr, SPLITS: tl.constexpr):
    """Add a tile's partial sums in the order of the splits."""
    at = tl.arange(0, BN)[:, None] * BM + tl.arange(0, BM)[None, :]
    acc = tl.load(partial_sums + at, cache_modifier=".cg")
    for split in tl.static_range(1, SPLITS):
        acc += tl.load(partial_sums + split * (BN * BM) + at, cache_modifier=".cg")
    return acc


class Splits(NamedTuple):
    """Split-K's buffers: partial_sums float32 [tiles, splits, BN, BM], tile_counters int32 [tiles].

    A tile counter counts the stored partial sums; the kernel before zeroes it. Both are None where
    K is not split.
    """

    partial_sums: Tensor | None = None
    tile_counters: Tensor | None = None


def plan_splits(m: int, n: int, config: MmConfig, device: torch.device) -> Splits:
    """Allocate split-K's buffers for an [m, n] output."""
    if config.splits == 1:
        return Splits()
    tiles = cdiv(m, config.BM) * cdiv(n, config.BN)
    shape = (tiles, config.splits, config.BN, config.BM)
    partial_sums = torch.empty(shape, dtype=torch.float32, device=device)
    return Splits(partial_sums, torch.empty(tiles, dtype=torch.int32, device=device))
