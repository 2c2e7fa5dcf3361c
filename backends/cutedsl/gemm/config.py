"""What is compiled into a kernel: its tile, and its epilogue.

A kernel computes D [rows, columns] = A B^T, A [rows, K] on the MMA's M and B [columns, K] on its N.
Unswapped, A is the activations and D the output; swapped, A is the weights, and D its transpose.
Grouped, it computes a D for each expert: of rows that lie expert after expert (spec/grouped.py),
and of the expert's own weights.
"""

from dataclasses import dataclass
from enum import Enum

import torch

from nvfp4.spec.glu import SILU
from nvfp4.spec.scale_rules import AMAX_OVER_SIX
from nvfp4.spec.swizzle import TILE_ROWS

STAGE_K = 256
"""K of a load stage: rows of 128 bytes."""

CTA_ROWS = 128
"""Rows of D that a CTA computes: the lanes of its tensor memory."""

SWAPPED_COLUMNS = (8, 16, 32, 64)
"""Tile widths for few tokens. Those under SCALE_STEP hold all tokens in one tile."""

SPLIT_COLUMNS = 128
"""The widest tile with split_k: its partial sums, 64 KB, leave room for 4 stages."""

SCALE_STEP = 64
"""Rows of B's scales that the MMA can move by: a tile of columns starts on a multiple of it.

Tensor memory has 32 rows of scales in a column, and the MMA reaches even columns only. So a second
tile of 32 columns would read the scales of the first.
"""

GLU_COLUMNS = TILE_ROWS
"""Columns of gate, and of up, in a tile: each a scale tile of the weights."""


@dataclass(frozen=True)
class Tile:
    """`rows` x `columns` of D an MMA computes: 128 rows by one CTA, 256 by a pair of CTAs.

    A cluster of cluster_rows x cluster_columns CTAs shares its operands by TMA multicast. With
    split_k, its CTAs share one tile of D instead, each with a part of K.
    """

    rows: int
    columns: int
    cluster_rows: int = 1
    cluster_columns: int = 1
    split_k: int = 1
    swapped: bool = False

    def __post_init__(self) -> None:
        if problems := self.problems():
            raise ValueError(f"Tile: {'; '.join(problems)}, got {self}")

    def problems(self) -> list[str]:
        """What no kernel can do; empty for a valid tile."""
        wide = self.columns in (64, 128, 192, 256)
        narrow = self.swapped and self.columns in SWAPPED_COLUMNS
        found = []
        if self.rows not in (CTA_ROWS, 2 * CTA_ROWS):
            found.append("rows needs 128 or 256")
        if not (wide or narrow):
            found.append("columns needs 64, 128, 192 or 256, or, swapped, 8, 16, 32 or 64")
        if self.cluster_rows not in (1, 2, 4) or self.cluster_columns not in (1, 2, 4):
            found.append("cluster_rows and cluster_columns need 1, 2 or 4")
        if self.ctas == 2 and self.cluster_rows < 2:
            found.append("cluster_rows needs 2 or 4 for a pair of CTAs")
        if self.columns < 64 and self.cluster_rows > 1:
            found.append("cluster_rows needs 1 for columns under 64")
        if self.split_k not in (1, 2, 4, 8):
            found.append("split_k needs 1, 2, 4 or 8")
        alone = self.ctas == 1 and self.cluster_rows == self.cluster_columns == 1
        if self.split_k > 1 and not (alone and self.columns <= SPLIT_COLUMNS):
            found.append(f"split_k needs one CTA a tile and columns up to {SPLIT_COLUMNS}")
        return found

    def unfit(self, rows: int, columns: int, k: int) -> list[str]:
        """Why this tile cannot compute a D of rows x columns with this K; empty if it can."""
        found = []
        if self.columns < SCALE_STEP and columns > self.columns:
            found.append(f"columns under {SCALE_STEP} need all {columns} columns of D in one tile")
        if self.split_k > -(-k // STAGE_K):
            found.append(f"split_k needs K = {STAGE_K} or a part of it for each CTA, K is {k}")
        return found

    def ungrouped(self) -> list[str]:
        """Why a grouped kernel cannot have this tile; empty if it can. An expert's tokens start
        anywhere in the rows, but its scales on a scale tile: its tiles of tokens are SCALE_STEP
        columns or more, since it may need several.
        """
        found = []
        if self.cluster != self.ctas:
            found.append("a grouped tile needs no cluster but a pair's, and no split_k")
        if self.columns < SCALE_STEP:
            found.append(f"a grouped tile needs {SCALE_STEP} columns or more")
        return found

    @property
    def ctas(self) -> int:
        """CTAs that compute one MMA together: 1, or a pair."""
        return self.rows // CTA_ROWS

    @property
    def cluster(self) -> int:
        return self.cluster_rows * self.cluster_columns * self.split_k

    @property
    def cluster_tile(self) -> tuple[int, int]:
        """What a cluster computes of D at a time: rows, columns."""
        return CTA_ROWS * self.cluster_rows, self.columns * self.cluster_columns

    def tiles(self, rows: int, columns: int) -> int:
        """Cluster tiles of a D of rows x columns."""
        high, wide = self.cluster_tile
        return -(-rows // high) * -(-columns // wide)

    def clusters(self, rows: int, columns: int, sms: int) -> int:
        """Clusters to launch: persistent, one CTA an SM; with split-K, one tile a cluster.

        A second tile would have to wait until the other CTAs have read the first one's partial
        sums, and such a release waits for global memory too.
        """
        tiles = self.tiles(rows, columns)
        return tiles if self.split_k > 1 else min(tiles, max(1, sms // self.cluster))

    def __str__(self) -> str:
        cluster = f" cluster {self.cluster_rows}x{self.cluster_columns}" if self.cluster > 1 else ""
        if self.split_k > 1:
            cluster = f" split-K {self.split_k}"
        return f"{self.rows}x{self.columns}{cluster}{' swapped' if self.swapped else ''}"


@dataclass(frozen=True)
class Glu:
    """act(gate) * up, quantized (spec/glu.py, spec/quantize.py). A tile's columns are then half
    gate, half up. limited: whether gate and up are bounded first.
    scale_rule: of the result's block scales.
    """

    activation: str = SILU
    limited: bool = False
    scale_rule: str = AMAX_OVER_SIX

    def __str__(self) -> str:
        rule = "" if self.scale_rule == AMAX_OVER_SIX else f" by {self.scale_rule}"
        return f"{self.activation}{' with a limit' * self.limited}, quantized{rule}"


class Alpha(Enum):
    """The shape of alpha, the factor of the sums."""

    ONE = "one"
    """[1, 1]: one number."""
    ROWS = "rows"
    """[M, 1]: one a row of the output."""
    SEGMENTS = "segments"
    """[1, S]: one a segment of N."""
    MATRIX = "matrix"
    """[M, S]: both, looked up for each element."""

    @staticmethod
    def of(rows: int, segments: int) -> "Alpha":
        """The form of alpha [rows, segments]."""
        if rows > 1:
            return Alpha.MATRIX if segments > 1 else Alpha.ROWS
        return Alpha.SEGMENTS if segments > 1 else Alpha.ONE


@dataclass(frozen=True)
class Epilogue:
    """out = acc * factor (+ bias), a fused multiply-add in float32, then rounded to out_dtype.

    The factor is alpha, with row_scale times a number of the row. With tma_store the output is
    stored by TMA, which needs rows that start on 16 bytes; without, element by element. With glu
    the rounded gate and up go on into a gated linear unit.
    """

    out_dtype: torch.dtype = torch.bfloat16
    alpha: Alpha = Alpha.ONE
    row_scale: bool = False
    bias: bool = False
    bias_dtype: torch.dtype = torch.float32
    tma_store: bool = True
    glu: Glu | None = None


@dataclass(frozen=True)
class Kernel:
    """A static configuration: one compiled function, for every shape and address.

    half_sm: it takes no more than half of an SM's shared memory, so that the next kernel's CTAs may
    start beside its own (PDL). constant_weights: the kernel before it writes no weights, so it
    loads its first stages of them before it waits for that kernel (griddepcontrol.wait).
    """

    tile: Tile
    epilogue: Epilogue = Epilogue()
    grouped: bool = False
    half_sm: bool = False
    constant_weights: bool = False

    def __post_init__(self) -> None:
        if problems := self.problems():
            raise ValueError(f"Kernel: {'; '.join(problems)}, got {self}")

    def problems(self) -> list[str]:
        found = self.tile.ungrouped() if self.grouped else []
        glu = self.epilogue.glu is not None
        if glu and (self.tile.columns != 2 * GLU_COLUMNS or self.tile.swapped or not self.grouped):
            found.append(f"a glu needs a grouped, unswapped tile of {2 * GLU_COLUMNS} columns")
        e = self.epilogue
        if glu and (e.tma_store or e.bias or e.alpha is not Alpha.ONE):
            found.append("a glu needs an epilogue without tma_store, bias and forms of alpha")
        if self.grouped and self.constant_weights:
            found.append("constant_weights needs an ungrouped kernel: offsets say whose weights")
        return found

    def __str__(self) -> str:
        e = self.epilogue
        parts = [str(e.out_dtype).removeprefix("torch."), f"alpha {e.alpha.value}"]
        parts += ["row_scale"] * e.row_scale
        parts += [f"bias {str(e.bias_dtype).removeprefix('torch.')}"] * e.bias
        parts += ["element stores"] * (not e.tma_store and e.glu is None)
        parts += [str(e.glu)] * (e.glu is not None)
        parts += ["half of an SM"] * self.half_sm
        parts += ["constant weights"] * self.constant_weights
        return f"{'grouped ' * self.grouped}{self.tile}: {', '.join(parts)}"
