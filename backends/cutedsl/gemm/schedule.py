"""Static persistent scheduling: which tiles a cluster computes, one after the other.

Tiles are rasterized in groups of tile rows, as with GROUP_M in Triton's GEMMs: within a group along
M first. Clusters that run together then share few tiles of B and the group's rows of A, which stay
in L2 (launch.group_m_of). A cluster takes every `clusters`-th tile. In a grouped GEMM a tile's
expert is looked up (groups.py).
"""

from typing import NamedTuple

import cutlass
import cutlass.cute as cute
from cutlass import Boolean, Int32, Uint32, const_expr

from nvfp4.backends.cutedsl.gemm import groups
from nvfp4.backends.cutedsl.gemm.layouts import Layout
from nvfp4.backends.cutedsl.gemm.sizes import SCALE_LANES, SCALE_ROWS


class Grid(NamedTuple):
    """D's size, the cluster tiles that it takes, and which cluster this is of how many.

    rows, columns: of cluster tiles; group_m: rows of cluster tiles that are rasterized together.
    """

    height: Int32
    width: Int32
    rows: Int32
    columns: Int32
    group_m: Int32
    cluster: Int32
    clusters: Int32


class CtaSchedule(NamedTuple):
    """The grid, and the offset of the caller's part of each cluster tile."""

    grid: Grid
    row_offset: Int32
    column_offset: Int32


class TileCoord(NamedTuple):
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
    """The number of the cluster's first tile, and the schedule that gives the next ones.

    offset: (row, column) of the caller's part of each cluster tile. grid: a Grid; of a grouped GEMM
    a Groups.
    """
    if const_expr(layout.grouped):
        return grid.cluster, grid.at_offset(offset)
    return grid.cluster, CtaSchedule(grid, Int32(offset[0]), Int32(offset[1]))


@cute.jit
def next_tile(layout: cutlass.Constexpr[Layout], tile: Int32, schedule) -> Int32:
    if const_expr(layout.grouped):
        return tile + schedule.clusters
    return tile + schedule.grid.clusters


@cute.jit
def remains(layout: cutlass.Constexpr[Layout], tile: Int32, schedule) -> Boolean:
    if const_expr(layout.grouped):
        return tile < schedule.tiles
    return tile < schedule.grid.rows * schedule.grid.columns


@cute.jit
def tile_coord(layout: cutlass.Constexpr[Layout], tile: Int32, schedule):
    """The tile's coordinates: a TileCoord, or groups.TileCoord of a grouped GEMM."""
    if const_expr(layout.grouped):
        return groups.tile_coord(layout, tile, schedule)
    grid = schedule.grid
    high, wide = layout.tile.cluster_tile
    group_m = Int32(Uint32(tile) // Uint32(grid.group_m * grid.columns))
    first = group_m * grid.group_m
    rows = cutlass.min(grid.group_m, grid.rows - first)
    within = tile - first * grid.columns
    column = Int32(Uint32(within) // Uint32(rows))
    row = first + within - column * rows
    return TileCoord(
        row * high + schedule.row_offset,
        column * wide + schedule.column_offset,
        grid.height,
        grid.width,
    )
