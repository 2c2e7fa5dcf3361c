"""What is compiled into a kernel: its tile, and its epilogue.

A kernel computes D [rows, columns] = A B^T, A [rows, K] on the MMA's M and B [columns, K] on its N.
Unswapped, A is the activations and D the output; swapped, A is the weights, and D its transpose.
"""

from dataclasses import dataclass

import torch

STAGE_K = 256
"""K of a load stage: rows of 128 bytes."""

SWAPPED_COLUMNS = (8, 16, 32, 64)
"""Tile widths for few tokens: those of 8 and 16 hold all of them in one tile, since a tile's scales
must start on one of tensor memory's groups of 32 rows."""


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
        if self.rows not in (128, 256):
            found.append("rows needs 128 or 256")
        if not (wide or narrow):
            found.append("columns needs 64, 128, 192 or 256, or, swapped, 8, 16, 32 or 64")
        if self.cluster_rows not in (1, 2, 4) or self.cluster_columns not in (1, 2, 4):
            found.append("cluster_rows and cluster_columns need 1, 2 or 4")
        if self.rows == 256 and self.cluster_rows < 2:
            found.append("cluster_rows needs 2 or 4 for a pair of CTAs")
        if self.columns < 64 and self.cluster_rows > 1:
            found.append("cluster_rows needs 1 for columns under 64")
        if self.split_k not in (1, 2, 4, 8):
            found.append("split_k needs 1, 2, 4 or 8")
        alone = self.rows == 128 and self.cluster_rows == self.cluster_columns == 1
        if self.split_k > 1 and not (alone and self.columns <= 64):
            found.append("split_k needs one CTA a tile and columns up to 64")
        return found

    def unfit(self, rows: int, columns: int, k: int) -> list[str]:
        """Why this tile cannot compute a D of rows x columns with this K; empty if it can."""
        found = []
        if self.columns < 32 and columns > self.columns:
            found.append(f"columns under 32 need all {columns} columns of D in one tile")
        if self.split_k > -(-k // STAGE_K):
            found.append(f"split_k needs K = {STAGE_K} or a part of it for each CTA, K is {k}")
        return found

    @property
    def ctas(self) -> int:
        """CTAs that compute one MMA together: 1, or a pair."""
        return self.rows // 128

    @property
    def cluster(self) -> int:
        return self.cluster_rows * self.cluster_columns * self.split_k

    @property
    def cluster_tile(self) -> tuple[int, int]:
        """What a cluster computes of D at a time: rows, columns."""
        return 128 * self.cluster_rows, self.columns * self.cluster_columns

    def tiles(self, rows: int, columns: int) -> int:
        """Cluster tiles of a D of rows x columns."""
        high, wide = self.cluster_tile
        return -(-rows // high) * -(-columns // wide)

    def clusters(self, rows: int, columns: int, sms: int) -> int:
        """Clusters to launch: persistent, one CTA an SM."""
        return min(self.tiles(rows, columns), max(1, sms // self.cluster))

    def __str__(self) -> str:
        cluster = f" cluster {self.cluster_rows}x{self.cluster_columns}" if self.cluster > 1 else ""
        if self.split_k > 1:
            cluster = f" split-K {self.split_k}"
        return f"{self.rows}x{self.columns}{cluster}{' swapped' if self.swapped else ''}"


@dataclass(frozen=True)
class Epilogue:
    """out = acc * factor (+ bias), a fused multiply-add in float32, then rounded to out_dtype.

    alpha, which the factor is: "one" number [1, 1], "rows" [M, 1], "segments" of N [1, S], or a
    "matrix" [M, S], looked up per element. row_scale: times another per row. tma_store: by TMA, for
    outputs whose rows start on 16 bytes, else element by element.
    """

    out_dtype: torch.dtype = torch.bfloat16
    alpha: str = "one"
    row_scale: bool = False
    bias: bool = False
    bias_dtype: torch.dtype = torch.float32
    tma_store: bool = True


@dataclass(frozen=True)
class Kernel:
    """A static configuration: one compiled function, for every shape and address."""

    tile: Tile
    epilogue: Epilogue = Epilogue()

    def __str__(self) -> str:
        e = self.epilogue
        parts = [str(e.out_dtype).removeprefix("torch."), f"alpha {e.alpha}"]
        parts += ["row_scale"] * e.row_scale
        parts += [f"bias {str(e.bias_dtype).removeprefix('torch.')}"] * e.bias
        parts += ["element stores"] * (not e.tma_store)
        return f"{self.tile}: {', '.join(parts)}"
