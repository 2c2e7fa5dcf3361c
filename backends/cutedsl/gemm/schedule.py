"""Static persistent scheduling: which tiles a cluster computes, one after the other.

Tiles are counted by bands of rows of D, within a band along M first (GROUP_M): clusters that run
together share few tiles of B, and the band's rows of A, which stay in L2 (launch.band_of). A
cluster takes every `clusters`-th tile. Grouped, a tile's expert is looked up (groups.py).
"""

from typing import NamedTuple

import cutlass
import cutlass.cute as cute
from cutlass import Boolean, Int32, Uint32, const_expr

from nvfp4.backends.cutedsl.gemm import groups
from nvfp4.backends.cutedsl.gemm.layouts import SCALE_LANES, SCALE_ROWS, Layout


class Grid(NamedTuple):
    """D's size, the cluster tiles that it takes, and which cluster this is of how many.

    rows, columns: of cluster tiles; band: rows of cluster tiles that are walked together.
    """

    height: Int32
    width: Int32
    rows: Int32
    columns: Int32
    band: Int32
    cluster: Int32
    clusters: Int32


class Walk(NamedTuple):
    """The grid, and where a part of the cluster is in the cluster's tile."""

    grid: Grid
    row_offset: Int32
    column_offset: Int32


class Place(NamedTuple):
    """A tile's coordinates in an ungrouped D: A's and B's rows are D's rows and columns."""

    row: Int32
    column: Int32
    row_end: Int32
    column_end: Int32

    @property
    def a_row(self) -> Int32:
        return self.row

    @property
    def b_row(self) -> Int32:
        return self.column

    @property
    def a_scale_tile(self) -> Int32:
        return self.row // SCALE_ROWS

    @property
    def b_scale_tile(self) -> Int32:
        return self.column // SCALE_ROWS

    @property
    def b_group(self) -> Int32:
        return self.column % SCALE_ROWS // SCALE_LANES


@cute.jit
def start(layout: cutlass.Constexpr[Layout], grid, offset):
    """The number of the first tile, and how to go on; of the cluster, or of a part of it that is at
    `offset`, (row, column) in the cluster's tile. grid: Grid, grouped: Groups.
    """
    if const_expr(layout.grouped):
        return grid.cluster, grid.moved(offset)
    return grid.cluster, Walk(grid, Int32(offset[0]), Int32(offset[1]))


@cute.jit
def next_tile(layout: cutlass.Constexpr[Layout], tile: Int32, walk) -> Int32:
    if const_expr(layout.grouped):
        return tile + walk.clusters
    return tile + walk.grid.clusters


@cute.jit
def remains(layout: cutlass.Constexpr[Layout], tile: Int32, walk) -> Boolean:
    if const_expr(layout.grouped):
        return tile < walk.tiles
    return tile < walk.grid.rows * walk.grid.columns


@cute.jit
def place_of(layout: cutlass.Constexpr[Layout], tile: Int32, walk):
    """The tile's coordinates: a Place, or groups.Place where grouped."""
    if const_expr(layout.grouped):
        return groups.place_of(layout, tile, walk)
    grid = walk.grid
    high, wide = layout.tile.cluster_tile
    band = Int32(Uint32(tile) // Uint32(grid.band * grid.columns))
    first = band * grid.band
    rows = cutlass.min(grid.band, grid.rows - first)
    within = tile - first * grid.columns
    column = Int32(Uint32(within) // Uint32(rows))
    row = first + within - column * rows
    return Place(
        row * high + walk.row_offset,
        column * wide + walk.column_offset,
        grid.height,
        grid.width,
    )
