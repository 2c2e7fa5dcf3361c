"""The GEMM's tiles."""

from collections.abc import Iterable
from typing import NamedTuple

K_GROUP = 128
"""K is summed in groups of this many elements, whatever the tile; BK is a multiple of it."""


class MmConfig(NamedTuple):
    """BM x BN outputs a program, BK of K a step. `decode_a_first`, `decode_b_first` (then A too): a
    kernel of its own decodes the operand before, instead of every program that multiplies it.
    """

    BM: int
    BN: int
    BK: int
    num_warps: int
    num_stages: int
    decode_a_first: bool = False
    decode_b_first: bool = False
    splits: int = 1
    ahead: int = 0


FEWEST = MmConfig(8, 64, 256, 4, 4, decode_a_first=True)
FEW = MmConfig(16, 64, 256, 4, 4, decode_a_first=True)
"""On sm_90 FEWEST is up to 15 % faster for few tokens, and up to 26 % for few rows an expert; but
on an H200 2 of 49,152 float32 sums by it had another last bit than by LARGEST, and a token's bits
must not tell how many came with it. Tiles of two warps, which are mma.sync's instead of wgmma's,
are left out there as a precaution.
"""

SMALL = MmConfig(64, 64, 256, 4, 3, decode_a_first=True)
WIDE = MmConfig(64, 128, 256, 8, 3, decode_a_first=True)
LARGE = MmConfig(128, 128, 128, 8, 3, decode_a_first=True)
LARGEST = MmConfig(256, 128, 128, 8, 3, decode_a_first=True)
SPEED = {SMALL: 0.47, WIDE: 0.61, LARGE: 0.79, LARGEST: 1.0}
"""Products in a unit of time on an H200, relative (bench/results/h200_linear_tiles.json): the
larger a tile, the less is decoded for each.
"""

DECODED = MmConfig(128, 256, 64, 8, 4, decode_a_first=True, decode_b_first=True)
"""Nothing is decoded here: for very many tokens a pass over the weights before pays."""

SMS = 132
"""An H200's. With fewer the same tiles come in more waves, and the choice is still a good one."""


def _fastest(m: int, n: int, tiles: Iterable[MmConfig]) -> MmConfig:
    """The tile whose waves take least: a wave takes as long for one program as for all."""

    def time(tile: MmConfig) -> float:
        programs = -(-m // tile.BM) * -(-n // tile.BN)
        return -(-programs // SMS) * tile.BM * tile.BN / SPEED[tile]

    return min(tiles, key=time)


def choose_config(m: int, n: int, k: int, sm: int) -> MmConfig:
    """Tiles from the problem's size.

    No choice here changes how K is summed, nor is K ever split: the bits of a row of the output are
    the same whatever rows come with it.
    """
    if sm >= 100:  # W's 128 rows fill one block-scaled tcgen05.mma; nothing is decoded
        bm = next(bm for bm in (16, 32, 64, 128) if m <= bm or bm == 128)
        return MmConfig(bm, 128, 256, 4, 3)
    # Measured on an H200 (bench/results/h200_linear_tiles.json). A always is decoded before.
    if m <= 16:
        return FEW if sm == 90 or m > 8 else FEWEST
    if m <= 32:
        return MmConfig(32, 64, 256, 4, 3, decode_a_first=True)
    if sm != 90:  # less shared memory
        return _fastest(m, n, (SMALL, LARGE))
    return _fastest(m, n, SPEED) if m <= 512 else DECODED


def choose_grouped_config(rows: int, experts: int, sm: int) -> MmConfig:
    """Tiles for `rows` rows of `experts` experts, from how many each would have: who has more, and
    how many of the rows are nobody's, only the device knows. Sums are those of choose_config.
    """
    mean = -(-rows // min(rows, experts))
    if sm >= 100:
        return choose_config(mean, 0, 0, sm)
    # Measured on an H200 (bench/results/h200_grouped_tiles.json). Each tile decodes its weights
    # anew: as soon as an expert fills them, the largest win.
    if mean <= 16:
        return FEW if sm == 90 or mean > 8 else FEWEST
    if mean <= 28:
        return MmConfig(32, 64, 256, 4, 3, decode_a_first=True)
    if mean <= 96:
        return MmConfig(64, 128, 128, 4, 3, decode_a_first=True)
    return LARGEST if sm == 90 and mean > 160 else LARGE
