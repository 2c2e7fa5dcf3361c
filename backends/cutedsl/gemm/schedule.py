"""Static persistent scheduling: which tiles a cluster computes, one after the other.

Tiles are counted along M first: clusters that run together share few tiles of B, and all of A,
which fits in L2 (126 MB: 16 k rows of K = 8192 are 75). A cluster takes every `clusters`-th tile.
All roles count alike, by additions; grouped, by looking a tile's expert up (groups.py).
"""

from typing import NamedTuple

import cutlass
import cutlass.cute as cute
from cutlass import Boolean, Int32, const_expr

from nvfp4.backends.cutedsl.gemm import groups
from nvfp4.backends.cutedsl.gemm.layouts import SCALE_LANES, SCALE_ROWS, Layout


class Grid(NamedTuple):
    """D's size, the cluster tiles that it takes, and which cluster this is of how many."""

    height: Int32
    width: Int32
    rows: Int32
    columns: Int32
    cluster: Int32
    clusters: Int32


class Walk(NamedTuple):
    """How a cluster gets from tile to tile, in rows and columns of D.

    rows: rows of all tiles; backward: the step in rows, less `rows`; forward: the step in columns,
    and one tile more; end: where the columns of tiles end; height, width: D's.
    """

    rows: Int32
    backward: Int32
    forward: Int32
    tile_columns: int
    end: Int32
    height: Int32
    width: Int32


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
    """What the first tile is, and how to go on; of the cluster, or of a part of it that is at
    `offset`, (row, column) in the cluster's tile. grid: Grid, grouped: Groups.
    """
    if const_expr(layout.grouped):
        return (grid.cluster,), grid.moved(offset)
    high, wide = layout.tile.cluster_tile
    column, step = grid.cluster // grid.rows, grid.clusters // grid.rows
    first_row = (grid.cluster - column * grid.rows) * high
    first = (first_row + offset[0], column * wide + offset[1])
    rows = grid.rows * high
    backward = (grid.clusters - step * grid.rows) * high - rows
    end = grid.columns * wide
    return first, Walk(rows, backward, (step + 1) * wide, wide, end, grid.height, grid.width)


@cute.jit
def next_tile(layout: cutlass.Constexpr[Layout], tile, walk):
    if const_expr(layout.grouped):
        return (tile[0] + walk.clusters,)
    row, column = tile[0] + walk.backward, tile[1] + walk.forward
    if row < 0:
        row = row + walk.rows
        column = column - walk.tile_columns
    return row, column


@cute.jit
def remains(layout: cutlass.Constexpr[Layout], tile, walk) -> Boolean:
    if const_expr(layout.grouped):
        return tile[0] < walk.tiles
    return tile[1] < walk.end


@cute.jit
def place_of(layout: cutlass.Constexpr[Layout], tile, walk):
    """The tile's coordinates: a Place, or groups.Place where grouped."""
    if const_expr(layout.grouped):
        return groups.place_of(layout, tile[0], walk)
    return Place(tile[0], tile[1], walk.height, walk.width)
