"""The GEMM's tiles."""

import functools
import math
from collections.abc import Iterable
from typing import NamedTuple

import torch

K_GROUP = 128
"""K is summed in groups of this many elements, whatever the tile; BK is a multiple of it."""


class MmConfig(NamedTuple):
    """BM x BN outputs a program, BK of K a step. splits: so many programs a tile, each with a part
    of K. most_registers: a thread's, so that more programs run at a time; None: what it takes.
    """

    BM: int
    BN: int
    BK: int
    num_warps: int
    num_stages: int
    splits: int = 1
    most_registers: int | None = None


class HopperConfig(NamedTuple):
    """hopper.py's tiles: BM rows of A times HOPPER_BN of B; slots of a step of either, a power of
    two. split: the programs share all steps of all tiles, and a tile's sum is split where a share
    ends. per_sm: an SM's programs at a time, of which there are no more than that.
    """

    BM: int
    a_slots: int
    b_slots: int
    split: bool = False
    per_sm: int = 1


HOPPER_BN = 128
"""The scales of as many rows are one tile of the swizzled layout."""

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

FEW_WEIGHTS = 20e6
"""Up to so many 9 to 16 tokens are multiplied by mma.sync, too."""

AT_ONCE, AT_MOST, MOST_REGISTERS = 5 * SMS, 6 * SMS, 80
"""Programs of _fewest's for 8 tokens that run at a time, as their registers allow, and if a thread
has no more than so many. These cost some time, but less than a second wave
(bench/results/h200_few_registers.json). Triton 3.9 keeps 24 bytes of a thread in memory then, 3.6
none.
"""


class Cost(NamedTuple):
    """Microseconds of a Hopper tile: a step of K, when every SM has its programs, over their
    number; sums that meet, beside PART for each.
    """

    step: float
    meeting: float


COST = {  # bench/results/h200_hopper_tiles.json, h200_two_programs.json, h200_slots.json,
    # h200_split_tiles.json; with 256 tokens, h200_linear.json
    HopperConfig(8, 4, 4, per_sm=2): Cost(0.34, 2),
    HopperConfig(16, 8, 8): Cost(0.45, 4),
    HopperConfig(16, 4, 4, per_sm=2): Cost(0.37, 1.6),
    HopperConfig(16, 2, 2, per_sm=2): Cost(0.405, 0.5),
    HopperConfig(32, 4, 4): Cost(0.46, 4.5),
    HopperConfig(32, 4, 4, per_sm=2): Cost(0.375, 2.8),
    HopperConfig(64, 4, 4): Cost(0.565, 4.2),
    HopperConfig(64, 2, 2, per_sm=2): Cost(0.5, 3.5),
    HopperConfig(128, 2, 2): Cost(0.84, 5.1),
    HopperConfig(256, 2, 4): Cost(1.335, 12),
}
"""On an H200. The products alone would take 1.17 with 256 tokens and half with 128: there the L2
cache, which gives an SM some 50 KB a microsecond, sets the time, and below it is decoding that
does: one step after the other leaves an SM waiting, so that two programs share it, as long as their
sums leave room. With 8 rows the weights then came at 88 % of the rate of a copy
(h200_two_programs.json). Where a program has few steps, fewer slots were faster.
"""

GROUPED = {  # bench/results/h200_two_programs.json, h200_grouped_tiles.json
    4: HopperConfig(8, 4, 4, per_sm=2),
    12: HopperConfig(16, 4, 4, per_sm=2),
    28: HopperConfig(32, 4, 4, per_sm=2),
    64: HopperConfig(64, 2, 4, per_sm=2),
    160: HopperConfig(128, 4, 4),
    math.inf: HopperConfig(256, 2, 4),
}
"""Tiles for experts by the most rows that they have on average: what an expert has more than a tile
holds decodes its weights once more.
"""

MOST_SPLIT = 3 * SMS
"""Tiles. Of more each program has a row of its own to do, and the L2 cache holds none of what they
read: 516 TFLOP/s instead of 700 with 8192 x 16384 x 7168.
"""

TILE = 2
"""Microseconds that a tile takes beside its steps."""

PART = 0.45
"""Microseconds that each part of a split sum takes."""


def _fastest(m: int, n: int, tiles: Iterable[MmConfig]) -> MmConfig:
    """The tile whose waves take least: a wave takes as long for one program as for all."""

    def time(tile: MmConfig) -> float:
        programs = -(-m // tile.BM) * -(-n // tile.BN)
        return -(-programs // SMS) * tile.BM * tile.BN / SPEED[tile]

    return min(tiles, key=time)


def _fewest(m: int, n: int, k: int) -> MmConfig:
    """For up to 16 tokens on Hopper. Triton 3.6 multiplies these by mma.sync, which is faster there
    than wgmma; but its sums may have another last bit than wgmma's (2 of 49,152 did), as split ones
    do. bench/results/h200_two_programs.json.
    """
    if m > 8:
        return MmConfig(16, 32, 256, 2, 3, splits=3)
    tiles, steps = -(-n // 64), -(-k // 256)
    squeezed = AT_ONCE < 3 * tiles <= AT_MOST
    at_once = AT_MOST if squeezed else AT_ONCE
    waves = -(-3 * tiles // at_once)  # of at least 3 splits, all but full
    splits = min(8, waves * at_once // tiles)
    share = -(-steps // splits)
    registers = MOST_REGISTERS if squeezed else None
    return MmConfig(8, 64, 256, 4, 3, splits=-(-steps // share), most_registers=registers)


def _choose_on_hopper(m: int, n: int, k: int, may_split: bool) -> HopperConfig:
    if m > 128:
        m = -(-m // 128) * 128  # of more than a few, the numbers that are warmed up (contract.py)

    def time(config: HopperConfig) -> float:
        cost = COST[config._replace(split=False)]
        tiles, steps = -(-m // config.BM) * -(-n // HOPPER_BN), k // K_GROUP
        if config.split:
            if tiles > MOST_SPLIT:
                return math.inf
            parts = config.per_sm * SMS / tiles
            return tiles * steps * cost.step / SMS + TILE + cost.meeting + PART * parts
        waves = -(-tiles // (config.per_sm * SMS))
        return waves * (steps * config.per_sm * cost.step + TILE)

    whole = list(COST)
    split = [tile._replace(split=True) for tile in whole] if may_split else []
    return min((*whole, *split), key=time)


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
    if sm == 90 and may_split and (m <= 8 or m <= 16 and n * k <= FEW_WEIGHTS):
        return _fewest(m, n, k)
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


def choose_grouped_config(rows: int, experts: int, k: int, sm: int) -> MmConfig | HopperConfig:
    """Tiles for about `rows` rows of `experts` experts, from how many each would have: who has
    more, only the device knows.
    """
    mean = -(-rows // min(rows, experts))
    if sm >= 100:
        return _choose_on_blackwell(mean)
    if sm == 90 and k % K_GROUP == 0:
        return next(tile for most, tile in GROUPED.items() if mean <= most)
    # Measured on an H200 (bench/results/h200_grouped_tiles.json). Each tile decodes its weights
    # anew: as soon as an expert fills them, the largest win.
    if mean <= 16:
        return FEW
    if mean <= 28:
        return MmConfig(32, 64, 256, 4, 3)
    if mean <= 96:
        return MmConfig(64, 128, 128, 4, 3)
    return LARGE
