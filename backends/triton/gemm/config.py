"""Tile configurations of the GEMMs, and the rules that choose them by the problem's size."""

import functools
import math
from collections.abc import Iterable
from typing import NamedTuple

import torch

from nvfp4.backends.triton.runtime.architecture import HOPPER, pipelines_wgmma
from nvfp4.backends.workload import warmed_up
from nvfp4.spec.swizzle import TILE_ROWS

K_GROUP = 128
"""Elements of K that are summed together, whatever the tile; BK is a multiple of it."""

ASYNC_MIN_M, ASYNC_MIN_N = 64, 16
"""The smallest product that Triton gives to wgmma or tcgen05.mma; mma.sync does smaller ones."""


class MmConfig(NamedTuple):
    """A tile of BM x BN outputs a program, in steps of BK elements of K.

    splits: split-K, so many programs a tile, each with a part of K. maxnreg: the cap on a thread's
    registers, so that more programs fit on an SM; None: no cap.
    """

    BM: int
    BN: int
    BK: int
    num_warps: int
    num_stages: int
    splits: int = 1
    maxnreg: int | None = None

    def stages(self, sm: int) -> int:
        """Pipeline stages on architecture sm_<sm>, which the installed Triton may allow or not."""
        uses_wgmma = sm == HOPPER and self.BN >= ASYNC_MIN_M and self.BM >= ASYNC_MIN_N
        return 1 if uses_wgmma and not pipelines_wgmma() else self.num_stages


class HopperConfig(NamedTuple):
    """A tile of BM x HOPPER_BN outputs for the pipeline in hopper/, in steps of K_GROUP.

    a_stages, b_stages: pipeline stages of A and of B, each a power of two. stream_k: the programs
    share all steps of all tiles evenly. per_sm: programs on an SM at a time.
    """

    BM: int
    a_stages: int
    b_stages: int
    stream_k: bool = False
    per_sm: int = 1


HOPPER_BN = TILE_ROWS
"""Weight rows of a Hopper tile: the rows of one swizzled scale tile."""

TMA_ALIGNMENT = 16
"""Bytes that the address of an operand must be aligned to, for TMA to copy it."""

SMS = 132
"""An H200's SMs. With fewer, the same tiles run in more waves and are still a good choice."""


@functools.cache
def sms(device: torch.device) -> int:
    """The GPU's number of SMs; an H200's where there is no GPU."""
    if device.type != "cuda":
        return SMS
    return torch.cuda.get_device_properties(device).multi_processor_count


TILE_16X64 = MmConfig(16, 64, 256, 4, 4)
TILE_32X64 = MmConfig(32, 64, 256, 4, 3)
TILE_64X64 = MmConfig(64, 64, 128, 4, 4)
TILE_64X128 = MmConfig(64, 128, 128, 4, 3)
TILE_128X128 = MmConfig(128, 128, 128, 8, 3)
DECODE_8X64 = MmConfig(8, 64, 256, 4, 3)
DECODE_16X32 = MmConfig(16, 32, 256, 2, 3, splits=3)
RELATIVE_SPEED = {TILE_64X64: 0.6, TILE_128X128: 1.0}
"""Relative throughput of the tiles on an H200 (bench/results/h200_linear_tiles.json).

A larger tile decodes less for each product. TILE_64X64 was measured with BK = 256, which spills on
sm_80.
"""

DECODE_MAX_WEIGHTS = 20e6
"""Up to this many weights, 9 to 16 tokens use the decode tiles too."""

RESIDENT_PROGRAMS = 5 * SMS
"""Programs of DECODE_8X64 that run at a time: their registers allow five an SM."""

CAPPED_RESIDENT_PROGRAMS, CAPPED_MAXNREG = 6 * SMS, 80
"""Programs that run at a time if a thread is capped at 80 registers.

The cap costs less time than a second wave (bench/results/h200_decode_registers.json). With it
Triton 3.9 spills 24 bytes a thread, 3.6 none.
"""


class Cost(NamedTuple):
    """Microseconds of a Hopper tile.

    step: a step of K with every SM full, over the programs on an SM. reduction: the fixed part of a
    stream-K reduction, beside PARTIAL_COST for each partial sum.
    """

    step: float
    reduction: float


COST = {  # bench/results/h200_hopper_tiles.json, h200_programs_per_sm.json,
    # h200_hopper_stages.json, h200_split_k.json; with 256 tokens, h200_linear.json
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
"""Measured on an H200.

The products alone would take 1.17 us a step with 256 tokens and half of that with 128. There the L2
cache sets the time: it gives an SM some 50 KB a microsecond. With fewer tokens decoding sets it.
One program's steps, one after the other, leave an SM waiting. So two programs share it, as long as
their accumulators leave room. With 8 rows the weights then came at 88 % of the rate of a copy
(h200_programs_per_sm.json). Programs of few steps were faster with fewer stages.
"""

GROUPED = {  # bench/results/h200_programs_per_sm.json, h200_grouped_tiles.json
    4: HopperConfig(8, 4, 4, per_sm=2),
    12: HopperConfig(16, 4, 4, per_sm=2),
    28: HopperConfig(32, 4, 4, per_sm=2),
    64: HopperConfig(64, 2, 4, per_sm=2),
    160: HopperConfig(128, 4, 4),
    math.inf: HopperConfig(256, 2, 4),
}
"""Tiles of the grouped GEMM by the largest mean of rows an expert.

An expert with more rows than the tile decodes its weights once more.
"""

STREAM_K_MAX_TILES = 3 * SMS
"""The most tiles that stream-K is used for.

With more, each program works through tiles of its own, and the L2 cache holds nothing that they
share: 516 TFLOP/s instead of 700 at 8192 x 16384 x 7168.
"""

TILE_OVERHEAD = 2
"""Microseconds of a tile beside its steps."""

PARTIAL_COST = 0.45
"""Microseconds to reduce one partial sum."""


def _choose_by_waves(m: int, n: int, tiles: Iterable[MmConfig]) -> MmConfig:
    """Choose the tile whose waves take the least time; a partial wave takes as long as a full."""

    def time(tile: MmConfig) -> float:
        programs = -(-m // tile.BM) * -(-n // tile.BN)
        return -(-programs // SMS) * tile.BM * tile.BN / RELATIVE_SPEED[tile]

    return min(tiles, key=time)


def _decode_config(m: int, n: int, k: int) -> MmConfig:
    """Choose the tile for up to 16 tokens on Hopper (decode), split over K.

    Triton multiplies so few rows by mma.sync, which is faster here than wgmma
    (bench/results/h200_programs_per_sm.json). Its sums may differ from wgmma's in the last bit, as
    split sums do: 2 of 49,152 did with Triton 3.6.
    """
    if m > 8:
        return DECODE_16X32
    tiles, steps = -(-n // DECODE_8X64.BN), -(-k // DECODE_8X64.BK)
    capped = RESIDENT_PROGRAMS < 3 * tiles <= CAPPED_RESIDENT_PROGRAMS
    at_once = CAPPED_RESIDENT_PROGRAMS if capped else RESIDENT_PROGRAMS
    waves = -(-3 * tiles // at_once)  # with at least 3 splits, nearly full
    splits = min(8, waves * at_once // tiles)
    share = -(-steps // splits)
    registers = CAPPED_MAXNREG if capped else None
    return DECODE_8X64._replace(splits=-(-steps // share), maxnreg=registers)


def _choose_on_hopper(m: int, n: int, k: int, may_split: bool) -> HopperConfig:
    """Choose the tile and schedule that take the least time by COST."""
    m = warmed_up(m)

    def time(config: HopperConfig) -> float:
        cost = COST[config._replace(stream_k=False)]
        tiles, steps = -(-m // config.BM) * -(-n // HOPPER_BN), k // K_GROUP
        if config.stream_k:
            if tiles > STREAM_K_MAX_TILES:
                return math.inf
            parts = config.per_sm * SMS / tiles
            reduction = cost.reduction + PARTIAL_COST * parts
            return tiles * steps * cost.step / SMS + TILE_OVERHEAD + reduction
        waves = -(-tiles // (config.per_sm * SMS))
        return waves * (steps * config.per_sm * cost.step + TILE_OVERHEAD)

    whole = list(COST)
    split = [tile._replace(stream_k=True) for tile in whole] if may_split else []
    return min((*whole, *split), key=time)


@functools.cache
def choose_config(
    m: int, n: int, k: int, sm: int, may_split: bool = True, portable: bool = False
) -> MmConfig | HopperConfig:
    """Choose the tile of a GEMM from its size and the architecture.

    may_split=False leaves out split-K and stream-K on Hopper. Without these no choice changes how K
    is summed, so a row of the output has the same bits whatever rows come with it. portable=True
    chooses among the tiles that run on every architecture and need no aligned operands.
    """
    if sm >= 100:
        return _choose_on_blackwell(m)
    # Measured on an H200 (bench/results/h200_linear_tiles.json).
    hopper = sm == 90 and not portable
    if hopper and may_split and (m <= 8 or m <= 16 and n * k <= DECODE_MAX_WEIGHTS):
        return _decode_config(m, n, k)
    if hopper and k % K_GROUP == 0:
        return _choose_on_hopper(m, n, k, may_split)
    if m <= 16:
        return TILE_16X64
    if m <= 32:
        return TILE_32X64
    return _choose_by_waves(m, n, (TILE_64X64, TILE_128X128))  # other GPUs have less shared memory


def _choose_on_blackwell(m: int) -> MmConfig:
    """Choose the tile where the hardware multiplies NVFP4; nothing here was measured.

    128 weight rows fill one block-scaled tcgen05.mma. Four warps would not have the registers for
    128 rows of both operands.
    """
    bm = next(bm for bm in (16, 32, 64, 128) if m <= bm or bm == 128)
    return MmConfig(bm, 128, 256, 4 if bm < 128 else 8, 3)


def choose_grouped_config(
    rows: int, experts: int, k: int, sm: int, portable: bool = False
) -> MmConfig | HopperConfig:
    """Choose the tile of a grouped GEMM from the mean of rows an expert, of about `rows` in all.

    Only the device knows how many rows each expert has. portable: as in choose_config.
    """
    mean = -(-rows // min(rows, experts))
    if sm >= 100:
        return _choose_on_blackwell(mean)
    if sm == 90 and not portable and k % K_GROUP == 0:
        return next(tile for most, tile in GROUPED.items() if mean <= most)
    # Each tile decodes its weights again, so the largest tile wins as soon as an expert fills it
    # (H200, bench/results/h200_grouped_tiles.json).
    if mean <= 16:
        return TILE_16X64
    if mean <= 28:
        return TILE_32X64
    if mean <= 96:
        return TILE_64X128
    return TILE_128X128
