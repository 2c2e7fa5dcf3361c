"""The tile for a problem: the one whose predicted time is least. A pure function of the problem.

The prediction is a roofline: the MMAs (or the shared memory that they read), L2 and HBM, in whole
waves of clusters. Its constants are NVIDIA's published figures of B200 or stated assumptions, and
none of it has been measured on one: it ranks tiles, and `python -m nvfp4 info --problem M N K`
prints it.
"""

import functools
from typing import NamedTuple

from nvfp4.backends.cutedsl.gemm.config import STAGE_K, SWAPPED_COLUMNS, Tile
from nvfp4.backends.cutedsl.gemm.layouts import MMA_K

SMS = 148
CLOCK = 1.85e9
"""Hz under load: 9.0 dense FP4 PFLOP/s at FLOPS_PER_CLOCK on all SMs."""
FLOPS_PER_CLOCK = 32768
"""Of dense FP4 MMA, an SM."""
HBM = 8.0e12 * 0.92
"""Bytes a second: 8 TB/s, of which copies reach nine tenths."""
L2_BYTES = 64
"""Bytes a clock that an SM loads from L2 (assumed, as on Hopper)."""
SHARED_BYTES = 128
"""Bytes a clock that an MMA reads from its SM's shared memory."""
LAUNCH = 2.5e-6
"""Seconds until the first MMA and after the last: launch, first loads, last stores (assumed)."""
EXCHANGE = 0.5e-6
"""Seconds that a split-K cluster takes to add its partial sums (assumed)."""
SWAP_UP_TO = 64
"""The most tokens that go to the MMA's N side: one tile holds them."""

WIDE = (64, 128, 192, 256)
TILES = (
    *(Tile(128, columns) for columns in WIDE),
    *(Tile(256, columns, cluster_rows=2) for columns in WIDE),
)
NARROW = tuple(
    Tile(128, columns, split_k=split, swapped=True)
    for columns in SWAPPED_COLUMNS
    for split in (1, 2, 4, 8)
)


class Prediction(NamedTuple):
    """Seconds that a tile would take, and of that each limit alone; `waves` of clusters."""

    tile: Tile
    time: float
    mma: float
    l2: float
    hbm: float
    waves: int

    def __str__(self) -> str:
        return (
            f"{self.tile}: {self.time * 1e6:.1f} us predicted (MMA {self.mma * 1e6:.1f}, "
            f"L2 {self.l2 * 1e6:.1f}, HBM {self.hbm * 1e6:.1f}; {self.waves} waves)"
        )


def predict(tile: Tile, m: int, n: int, k: int, out_bytes: int = 2, sms: int = SMS) -> Prediction:
    """The time of out [m, n] = A B^T with K = k by this tile on `sms` SMs."""
    rows, columns = (n, m) if tile.swapped else (m, n)
    waves = -(-tile.tiles(rows, columns) // max(1, sms // tile.cluster))
    stages = -(-k // STAGE_K)
    steps = -(-stages // tile.split_k)

    # Of one K = 64 MMA, an SM's share: its 128 rows, its part of B's rows.
    b_rows = tile.columns // tile.ctas
    multiply = 2 * 128 * tile.columns * MMA_K / FLOPS_PER_CLOCK
    read = (128 + b_rows) * MMA_K / 2 / SHARED_BYTES
    mma = waves * steps * (STAGE_K // MMA_K) * max(multiply, read) / CLOCK

    loaded = 128 / tile.cluster_columns + b_rows / (tile.cluster_rows // tile.ctas)
    l2 = waves * steps * loaded * STAGE_K * (1 / 2 + 1 / 16) / L2_BYTES / CLOCK

    moved = (m + n) * k * (1 / 2 + 1 / 16) + m * n * out_bytes
    hbm = moved / HBM

    overhead = LAUNCH + (EXCHANGE if tile.split_k > 1 else 0)
    return Prediction(tile, overhead + max(mma, l2, hbm), mma, l2, hbm, waves)


def candidates(m: int, n: int, k: int, splits: bool) -> tuple[Tile, ...]:
    """The tiles to choose from. Few tokens go to the MMA's N side, in one tile that just fits."""
    if m > SWAP_UP_TO:
        return TILES
    fitting = min(columns for columns in SWAPPED_COLUMNS if columns >= m)
    narrow = (t for t in NARROW if t.columns == fitting and not t.unfit(n, m, k))
    return tuple(t for t in narrow if splits or t.split_k == 1)


@functools.lru_cache(maxsize=65536)
def choose_config(
    m: int, n: int, k: int, out_bytes: int = 2, sms: int = SMS, splits: bool = True
) -> Prediction:
    """The best tile for out [m, n] = A B^T with K = k, and what it is expected to take.

    Splitting K depends on m, and with it the order of summation: without `splits` a row's bits do
    not depend on how many others there are.
    """
    return min(
        (predict(tile, m, n, k, out_bytes, sms) for tile in candidates(m, n, k, splits)),
        key=lambda prediction: prediction.time,
    )
