"""The GEMM's tiles."""

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


# The larger a tile, the less is decoded per product; the largest needs sm_90's shared memory.
LARGEST = MmConfig(256, 128, 128, 8, 3, decode_a_first=True)
LARGE = MmConfig(128, 128, 128, 8, 3, decode_a_first=True)

# Or nothing is decoded there: for so many tokens a pass over the weights before pays.
DECODED = MmConfig(128, 256, 64, 8, 4, decode_a_first=True, decode_b_first=True)


def choose_config(m: int, n: int, sm: int) -> MmConfig:
    """Tiles from the problem's size.

    No choice here changes how K is summed, nor is K ever split: the bits of a row of the output are
    the same whatever rows come with it.
    """
    if sm >= 100:  # W's 128 rows fill one block-scaled tcgen05.mma; nothing is decoded
        bm = next(bm for bm in (16, 32, 64, 128) if m <= bm or bm == 128)
        return MmConfig(bm, 128, 256, 4, 3)
    # Measured on an H200 (bench/results/h200_linear_tiles.json). 8 tokens fit the narrow side of
    # mma.sync; more warps and tiles of 64 rows of W are wgmma's. A always is decoded before.
    if m <= 8:
        return MmConfig(8, 64, 256, 4, 4, decode_a_first=True)
    if m <= 16:
        return MmConfig(16, 32, 256, 2, 3, decode_a_first=True)
    if m <= 32:
        return MmConfig(32, 64, 256, 4, 3, decode_a_first=True)
    if m <= 64:
        wide = n > 8192
        return MmConfig(64, 128 if wide else 64, 256, 8 if wide else 4, 3, decode_a_first=True)
    if m <= 256:
        return MmConfig(64, 64, 256, 4, 2, decode_a_first=True)
    if m <= 512 or sm != 90:
        return LARGEST if sm == 90 else LARGE
    return DECODED


def choose_grouped_config(rows: int, experts: int, sm: int) -> MmConfig:
    """Tiles for `rows` rows of `experts` experts, from how many each would have: who has more, and
    how many of the rows are nobody's, only the device knows. Sums are those of choose_config.
    """
    mean = -(-rows // min(rows, experts))
    if sm >= 100:
        return choose_config(mean, 0, sm)
    # Measured on an H200 (bench/results/h200_grouped_tiles.json). Each tile decodes its weights
    # anew: as soon as an expert fills them, the largest win.
    if mean <= 16:
        return MmConfig(16, 64, 256, 4, 4, decode_a_first=True)
    if mean <= 28:
        return MmConfig(32, 64, 256, 4, 3, decode_a_first=True)
    if mean <= 96:
        return MmConfig(64, 128, 128, 4, 3, decode_a_first=True)
    return LARGEST if sm == 90 and mean > 160 else LARGE
