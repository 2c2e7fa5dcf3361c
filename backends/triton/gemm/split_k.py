"""Split-K: several programs sum parts of K of one tile, and the last of them adds the parts up."""

from typing import NamedTuple

import torch
import triton
import triton.language as tl
from torch import Tensor

from nvfp4.backends.triton.gemm.config import MmConfig
from nvfp4.backends.triton.runtime.launch import cdiv


@triton.jit
def count_from_zero(arrived, tiles):
    """Zero the counters of a GEMM that comes after, `tiles` of them."""
    if arrived is not None and tl.program_id(0) + tl.program_id(1) == 0:
        for first in range(0, tiles, 1024):
            at = first + tl.arange(0, 1024)
            tl.store(arrived + at, tl.zeros((1024,), tl.int32), mask=at < tiles)


@triton.jit
def leave(acc, sums, split, arrived, BM: tl.constexpr, BN: tl.constexpr, SPLITS: tl.constexpr):
    """Leave a split's sums for the tile's last program; whether this is the last."""
    at = split * (BN * BM) + tl.arange(0, BN)[:, None] * BM + tl.arange(0, BM)[None, :]
    tl.store(sums + at, acc)
    tl.debug_barrier()  # all threads' stores come before the one that counts
    return tl.atomic_add(arrived, 1, sem="acq_rel") == SPLITS - 1


@triton.jit
def sum_of_splits(sums, BM: tl.constexpr, BN: tl.constexpr, SPLITS: tl.constexpr):
    """In the splits' order, whichever came last: the same bits each time."""
    at = tl.arange(0, BN)[:, None] * BM + tl.arange(0, BM)[None, :]
    acc = tl.load(sums + at, cache_modifier=".cg")
    for split in tl.static_range(1, SPLITS):
        acc += tl.load(sums + split * (BN * BM) + at, cache_modifier=".cg")
    return acc


class Splits(NamedTuple):
    """Where the splits of a sum over K meet: float32 [tiles, splits, BN, BM], and how many of each
    tile's have arrived, int32 [tiles], zeroed by the kernel before. None where none is split.
    """

    partial_sums: Tensor | None = None
    arrived: Tensor | None = None


def plan_splits(m: int, n: int, config: MmConfig, device: torch.device) -> Splits:
    if config.splits == 1:
        return Splits()
    tiles = cdiv(m, config.BM) * cdiv(n, config.BN)
    sums = torch.empty(tiles, config.splits, config.BN, config.BM, device=device)
    return Splits(sums, torch.empty(tiles, dtype=torch.int32, device=device))
