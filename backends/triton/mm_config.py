"""The GEMM's tiles."""

import functools
from collections.abc import Iterable
from typing import NamedTuple

import torch

K_GROUP = 128
"""K is summed in groups of this many elements, whatever the tile; BK is a multiple of it."""


class MmConfig(NamedTuple):
    """BM x BN outputs a program, BK of K a step. decode_first: a kernel of its own decodes the
    weights before, instead of every program that multiplies them. splits: so many programs a tile,
    each with a part of K.
    """

    BM: int
    BN: int
    BK: int
    num_warps: int
    num_stages: int
    decode_first: bool = False
    splits: int = 1


class HopperConfig(NamedTuple):
    """BM x BN outputs a tile (hopper_mm.py). per_sm: so many programs an SM share all steps of all
    tiles, and a tile's sum is split where a share ends; 0: a program a tile, nothing is split.
    """

    BM: int
    BN: int
    num_warps: int
    num_stages: int
    per_sm: int = 0


LEAST = 0
"""For tiles that run on every architecture."""

SMS = 132
"""An H200's. With fewer the same tiles come in more waves, and the choice is still a good one."""


@functools.cache
def sms(device: torch.device) -> int:
    """A GPU's number of SMs; an H200's where there is no GPU."""
    if device.type != "cuda":
        return SMS
    return torch.cuda.get_device_properties(device).multi_processor_count


FEW = MmConfig(16, 64, 256, 4, 4)
SMALL = MmConfig(64, 64, 128, 4, 4)
LARGE = MmConfig(128, 128, 128, 8, 3)
SPEED = {SMALL: 0.6, LARGE: 1.0}
"""Products in a unit of time on an H200, relative (bench/results/h200_linear_tiles.json; SMALL's
with steps of 256, which spill on sm_80): the larger a tile, the less is decoded for each.
"""

HOPPER_FEWEST = MmConfig(8, 64, 256, 4, 4, splits=4)
"""With 8 tokens Triton multiplies by mma.sync, which is faster there than wgmma; but its sums may
have another last bit than wgmma's (2 of 49,152 did), as split ones do.
"""

STEP = {  # bench/results/h200_hopper_tiles.json
    HopperConfig(128, 128, 8, 4): 0.91,
    HopperConfig(128, 128, 8, 5, 1): 0.91,
    HopperConfig(256, 128, 8, 3): 1.62,
}
"""Microseconds a tile's step takes on an H200 when every SM has one. Its products alone would take
0.58 and 1.17. The rest, it seems: a step's operands come from the L2 cache, 45 KB a microsecond to
each SM; and the warps of a program wait for each other at every step, so that they decode, and
multiply, all at once.
"""

TILE, MEETING = 3, 16
"""Microseconds that a tile takes beside its steps, and split sums to be left and summed."""


def _fastest(m: int, n: int, tiles: Iterable[MmConfig]) -> MmConfig:
    """The tile whose waves take least: a wave takes as long for one program as for all."""

    def time(tile: MmConfig) -> float:
        programs = -(-m // tile.BM) * -(-n // tile.BN)
        return -(-programs // SMS) * tile.BM * tile.BN / SPEED[tile]

    return min(tiles, key=time)


def _fastest_on_hopper(m: int, n: int, k: int, may_split: bool) -> HopperConfig:
    def time(tile: HopperConfig) -> float:
        tiles, steps = -(-m // tile.BM) * -(-n // tile.BN), k // K_GROUP
        if tile.per_sm:
            return tiles * steps * STEP[tile] / SMS + MEETING
        return -(-tiles // SMS) * (steps * STEP[tile] + TILE)

    return min((tile for tile in STEP if may_split or not tile.per_sm), key=time)


@functools.cache
def choose_config(
    m: int, n: int, k: int, sm: int, may_split: bool = True
) -> MmConfig | HopperConfig:
    """Tiles from the problem's size.

    But for Hopper's split sums no choice here changes how K is summed: the bits of a row of the
    output are then the same whatever rows come with it. may_split=False leaves split ones out.
    """
    if sm >= 100:
        return _choose_on_blackwell(m)
    # Measured on an H200 (bench/results/h200_linear_tiles.json).
    if sm == 90 and m <= 8 and may_split:
        return HOPPER_FEWEST
    if sm == 90 and k % K_GROUP == 0:
        return _choose_on_hopper(m, n, k, may_split)
    if m <= 16:
        return FEW
    if m <= 32:
        return MmConfig(32, 64, 256, 4, 3)
    return _fastest(m, n, (SMALL, LARGE))  # other GPUs have less shared memory


def _choose_on_blackwell(m: int) -> MmConfig:
    """W's 128 rows fill one block-scaled tcgen05.mma; nothing is decoded, nothing was measured.
    Four warps would not have the registers for 128 rows of both.
    """
    bm = next(bm for bm in (16, 32, 64, 128) if m <= bm or bm == 128)
    return MmConfig(bm, 128, 256, 4 if bm < 128 else 8, 3)


def _choose_on_hopper(m: int, n: int, k: int, may_split: bool) -> HopperConfig:
    if m > 512:  # sums that are split take too long to meet
        return _fastest_on_hopper(m, n, k, False)
    if m > 64:
        return _fastest_on_hopper(m, n, k, may_split)
    bm = next(bm for bm in (16, 32, 64) if m <= bm)
    # Of few steps it is not worth it, nor where there are tiles enough for two on each SM.
    split = may_split and k >= 24 * K_GROUP and (bm == 16 or n < 200 * 64)
    per_sm = {16: 4, 32: 3, 64: 2}[bm] if split else 0
    return HopperConfig(bm, 64, 4, 4 if split or bm > 16 else 6, per_sm)


def choose_grouped_config(rows: int, experts: int, k: int, sm: int) -> MmConfig | HopperConfig:
    """Tiles for `rows` rows of `experts` experts, from how many each would have: who has more, and
    how many of the rows are nobody's, only the device knows.
    """
    mean = -(-rows // min(rows, experts))
    if sm >= 100:
        return _choose_on_blackwell(mean)
    if sm == 90 and k % K_GROUP == 0:
        return _choose_grouped_on_hopper(mean)
    # Measured on an H200 (bench/results/h200_grouped_tiles.json). Each tile decodes its weights
    # anew: as soon as an expert fills them, the largest win.
    if mean <= 16:
        return FEW
    if mean <= 28:
        return MmConfig(32, 64, 256, 4, 3)
    if mean <= 96:
        return MmConfig(64, 128, 128, 4, 3)
    return LARGE


def _choose_grouped_on_hopper(mean: int) -> HopperConfig:
    if mean <= 16:
        return HopperConfig(16, 64, 4, 6)
    if mean <= 28:
        return HopperConfig(32, 64, 4, 4)
    if mean <= 64:
        return HopperConfig(64, 64, 4, 4)
    return HopperConfig(128, 128, 8, 4) if mean <= 160 else HopperConfig(256, 128, 8, 3)
