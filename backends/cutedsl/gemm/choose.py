"""Choose a tile: the one whose predicted time is least.

The choice is a pure function of the problem. Of a grouped problem it uses what the host knows: how
many rows and experts there are, not which rows are whose.

The prediction is a roofline: the MMAs (or the shared memory that they read), L2 and HBM, in whole
waves of clusters, and what is not hidden behind them. Nothing was measured here. Three of its
constants are calibrated on one half of published times of a B200 (python -m
nvfp4.bench.calibration); docs/performance.md compares it with both halves.
"""

import functools
import math
from typing import NamedTuple

from nvfp4.backends.cutedsl.gemm.config import (
    CTA_ROWS,
    GLU_COLUMNS,
    SPLIT_COLUMNS,
    STAGE_K,
    SWAPPED_COLUMNS,
    Tile,
)
from nvfp4.backends.cutedsl.gemm.sizes import GLU_WARPS, MMA_K
from nvfp4.backends.workload import warmed_up
from nvfp4.spec.format import BLOCK

B200_SMS = 148
FLOPS_PER_CLOCK = 32768
"""Operations of dense FP4 MMA that an SM does in a clock."""
L2_BYTES = 64
"""Bytes a clock that an SM loads from L2 (assumed, as on Hopper)."""
SHARED_BYTES = 128
"""Bytes a clock that an MMA reads from its SM's shared memory."""
GLU_INSTRUCTIONS = 22
"""Instructions a result that the fused epilogue executes, where no division is special: some 700
for a thread's 32 results, counted in the SASS."""
SCHEDULERS = 4
"""Warp schedulers of an SM: each issues an instruction a clock."""
ISSUE_GAP = 2
"""Clocks between instructions of one warp, where it is alone on its scheduler (assumed)."""
VALUE_BYTES = 1 / 2 + 1 / BLOCK
"""Bytes of a value and its part of a scale."""


class Machine(NamedTuple):
    """What a GPU achieves, as far as the prediction asks."""

    clock: float
    """Hz of main loops; their stalls count, so it is below the SM's clock."""
    launch: float
    """Seconds before the first wave and after the last: launch, first loads, last stores."""
    epilogue: float
    """Seconds of each wave that no main loop hides, for a tile of 256 columns."""
    hbm: float
    """Bytes a second."""
    exchange: float
    """Seconds that the CTAs of a split-K cluster take to meet; their partial sums pass between them
    at the rate of L2 (assumed).
    """


B200 = Machine(
    clock=1.180e9,  # calibrated; the published 9.0 PFLOP/s are 1.85e9
    launch=2.795e-6,  # calibrated
    epilogue=0.608e-6,  # calibrated
    hbm=8.0e12 * 0.88,  # published: 8 TB/s, of which copies of 0.5 GB reach 88 %
    exchange=0.5e-6,  # assumed: no published time is known to be of a kernel that splits K
)

SWAP_UP_TO = 64
"""The most tokens that always go to the MMA's N side: one tile holds them."""
SPLIT_UP_TO = 256
"""The most tokens for which K may be split: with more, unsplit tiles fill the GPU."""

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
SPLIT = tuple(Tile(128, SPLIT_COLUMNS, split_k=split, swapped=True) for split in (2, 4, 8))
"""Tiles for more tokens than SWAP_UP_TO, where unsplit ones would leave SMs idle."""
GROUPED = (*TILES, Tile(128, 64, swapped=True))
GLU = tuple(tile for tile in TILES if tile.columns == 2 * GLU_COLUMNS)


class Prediction(NamedTuple):
    """Seconds that a tile would take, and each part of it alone; `waves` of clusters.

    glu: the arithmetic of gated linear units, 0 without; main loops may hide it.
    """

    tile: Tile
    time: float
    mma: float
    l2: float
    hbm: float
    epilogue: float
    waves: int
    glu: float = 0.0

    def __str__(self) -> str:
        parts = {"MMA": self.mma, "L2": self.l2, "HBM": self.hbm, "epilogue": self.epilogue}
        parts |= {"GLU": self.glu} if self.glu else {}
        each = ", ".join(f"{name} {seconds * 1e6:.1f}" for name, seconds in parts.items())
        model = f"{self.time * 1e6:.1f} us modelled, calibrated on published times"
        return f"{self.tile}: {model} ({each}; {self.waves} waves)"


def predict(
    tile: Tile,
    m: int,
    n: int,
    k: int,
    out_bytes: int = 2,
    sms: int = B200_SMS,
    machine: Machine = B200,
) -> Prediction:
    """The time of out [m, n] = A B^T with K = k by this tile on `sms` SMs."""
    rows, columns = (n, m) if tile.swapped else (m, n)
    moved = (m + n) * k * VALUE_BYTES + m * n * out_bytes
    return _predict(tile, tile.tiles(rows, columns), moved, k, sms, machine)


def predict_grouped(
    tile: Tile,
    rows: int,
    experts: int,
    n: int,
    k: int,
    out_bytes: float = 2,
    sms: int = B200_SMS,
    machine: Machine = B200,
    glu_warps: int = 0,
) -> Prediction:
    """The time of `rows` rows of `experts` experts, spread evenly over as many as that can be; an
    expert's last tile of tokens is half full on average, and its only one wholly its own.
    glu_warps: the warps of the epilogue with a gated linear unit, if there is one.
    """
    active = min(rows, experts)
    tokens = rows / active
    step, weight_step = (tile.columns, CTA_ROWS) if tile.swapped else (tile.rows, tile.columns)
    high = max(1.0, tokens / step + 0.5) if tokens > 1 else 1.0
    tiles = math.ceil(active * high) * -(-n // weight_step)
    moved = (rows + active * n) * k * VALUE_BYTES + rows * n * out_bytes
    found = _predict(tile, tiles, moved, k, sms, machine)
    if not glu_warps:
        return found
    # Each CTA's results, by warps that share the SM's schedulers.
    instructions = CTA_ROWS * GLU_COLUMNS / 32 * GLU_INSTRUCTIONS / SCHEDULERS
    clocks = instructions * max(1.0, ISSUE_GAP * SCHEDULERS / glu_warps)
    glu = found.waves * clocks / machine.clock
    hidden = max(found.mma, found.l2, found.hbm)
    return found._replace(glu=glu, time=found.time + max(0.0, glu - hidden))


def _predict(
    tile: Tile, tiles: int, moved: float, k: int, sms: int, machine: Machine
) -> Prediction:
    """The time of `tiles` cluster tiles that move `moved` bytes from and to HBM."""
    waves = -(-tiles // max(1, sms // tile.cluster))
    stages = -(-k // STAGE_K)
    steps = -(-stages // tile.split_k)

    # Of one K = 64 MMA, an SM's share: its 128 rows, its part of B's rows.
    b_rows = tile.columns // tile.ctas
    multiply = 2 * CTA_ROWS * tile.columns * MMA_K / FLOPS_PER_CLOCK
    read = (CTA_ROWS + b_rows) * MMA_K / 2 / SHARED_BYTES
    mma = waves * steps * (STAGE_K // MMA_K) * max(multiply, read) / machine.clock

    loaded = CTA_ROWS / tile.cluster_columns + b_rows / (tile.cluster_rows // tile.ctas)
    l2 = waves * steps * loaded * STAGE_K * VALUE_BYTES / L2_BYTES / machine.clock

    hbm = moved / machine.hbm
    epilogue = waves * machine.epilogue * tile.columns / 256
    overhead = machine.launch + epilogue
    if tile.split_k > 1:
        partials = 4 * CTA_ROWS * tile.columns
        overhead += machine.exchange + partials / L2_BYTES / machine.clock
    return Prediction(tile, overhead + max(mma, l2, hbm), mma, l2, hbm, epilogue, waves)


def candidates(m: int, n: int, k: int, splits: bool) -> tuple[Tile, ...]:
    """The tiles to choose from. Few tokens go to the MMA's N side, in one tile that just fits."""
    if m > SWAP_UP_TO:
        split = (t for t in SPLIT if not t.unfit(n, m, k))
        return (*TILES, *split) if splits and m <= SPLIT_UP_TO else TILES
    fitting = min(columns for columns in SWAPPED_COLUMNS if columns >= m)
    narrow = (t for t in NARROW if t.columns == fitting and not t.unfit(n, m, k))
    return tuple(t for t in narrow if splits or t.split_k == 1)


@functools.lru_cache(maxsize=65536)
def choose_config(
    m: int,
    n: int,
    k: int,
    out_bytes: int = 2,
    sms: int = B200_SMS,
    splits: bool = True,
    machine: Machine = B200,
) -> Prediction:
    """The best tile for out [m, n] = A B^T with K = k, and what it is expected to take.

    Splitting K depends on m, and with it the order of summation: without `splits` a row's bits do
    not depend on how many others there are.
    """
    return min(
        (predict(tile, m, n, k, out_bytes, sms, machine) for tile in candidates(m, n, k, splits)),
        key=lambda prediction: prediction.time,
    )


@functools.lru_cache(maxsize=65536)
def choose_grouped_config(
    rows: int,
    experts: int,
    n: int,
    k: int,
    out_bytes: int = 2,
    sms: int = B200_SMS,
    glu: bool = False,
    machine: Machine = B200,
) -> Prediction:
    """The best tile for `rows` rows of `experts` experts with weights [n, k] each, and what it is
    expected to take. glu: the n columns are gate and up, and what is written is quantized.

    K is never split, so that a row's bits do not depend on the others. Where HBM is the limit of
    several tiles, the one that loads least is taken.
    """
    tiles, written = (GLU, VALUE_BYTES / 2) if glu else (GROUPED, out_bytes)
    warps = GLU_WARPS if glu else 0
    rows = warmed_up(rows)
    return min(
        (
            predict_grouped(tile, rows, experts, n, k, written, sms, machine, warps)
            for tile in tiles
        ),
        key=lambda prediction: (prediction.time, prediction.l2),
    )
