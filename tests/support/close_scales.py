"""Blocks for which 4 and 6 are nearly or exactly as good, with a global scale of 1."""

import numpy as np
import oracle
import torch
from torch import Tensor

ONE = np.float32(1)


def four_is_better(block: np.ndarray) -> bool:
    return bool(oracle.scaled(block, ONE, 4).error < oracle.scaled(block, ONE, 6).error)


def close_blocks(count: int = 24) -> Tensor:
    """float32 [2 count + 1, 16]: where the better scale changes, and a block that both scales hold.

    Blocks 2 i and 2 i + 1 differ by the last bit of one element, and one of them takes 4. So an
    error that is summed in another order, contracted, or compared by <= takes other scales.
    """
    rng, found = np.random.default_rng(0), []
    while len(found) < 2 * count:
        block, at = rng.standard_normal(16).astype(np.float32) * 64, int(rng.integers(1, 16))
        tries = np.linspace(0, np.abs(block).max(), 16, dtype=np.float32)
        better = [four_is_better(_with(block, at, value)) for value in tries]
        for i in range(15):
            if better[i] != better[i + 1]:
                found += _neighbours(block, at, tries[i], tries[i + 1], better[i])
                break
    exact = torch.zeros(1, 16)
    exact[0, 5] = -6 * 64.0
    return torch.cat([torch.from_numpy(np.stack(found)), exact])


def _neighbours(
    block: np.ndarray, at: int, low: np.float32, high: np.float32, below: bool
) -> list[np.ndarray]:
    """Halve the range in which the better scale changes until it has two float32 numbers."""
    first, last = int(low.view(np.int32)), int(high.view(np.int32))
    while last - first > 1:
        middle = (first + last) // 2
        same = four_is_better(_with(block, at, np.int32(middle).view(np.float32))) == below
        first, last = (middle, last) if same else (first, middle)
    return [_with(block, at, np.int32(bits).view(np.float32)) for bits in (first, last)]


def _with(block: np.ndarray, at: int, value: np.float32) -> np.ndarray:
    """The block with another element `at`."""
    changed = block.copy()
    changed[at] = value
    return changed
