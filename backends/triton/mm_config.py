"""The GEMM's tiles."""

from typing import NamedTuple


class MmConfig(NamedTuple):
    """BM x BN outputs a program, BK of K a step."""

    BM: int
    BN: int
    BK: int
    num_warps: int
    num_stages: int


def choose_config(m: int, n: int, sm: int) -> MmConfig:
    """Tiles from the problem's size.

    Only BM depends on M, and neither BK nor the way K is summed does: the bits of a row of the
    output are the same whatever rows come with it.
    """
    bm = 16 if m <= 16 else 32 if m <= 32 else 64 if m <= 64 else 128
    if sm >= 100:  # one M128 block-scaled instruction a tile; W's rows are the instruction's M
        return MmConfig(bm, 128, 256, 4, 3)
    if bm == 128:
        return MmConfig(bm, 128, 128, 8, 3)
    return MmConfig(bm, 64, 128, 4, 4)
