"""Which tiles a cluster computes, one after the other: static persistent scheduling.

Tiles are counted along M first, within groups of `group` row tiles: clusters that run together then
share few tiles of A and B in L2. A cluster takes every `clusters`-th tile. All warps count alike,
in mixed radix, by additions: a tile is (row tile in its group, column tile, group).
"""

from typing import NamedTuple

import cutlass.cute as cute
from cutlass import Boolean, Int32


class Grid(NamedTuple):
    """The tiles of clusters that D takes, and which cluster this is of how many."""

    group: Int32
    columns: Int32
    rows: Int32
    groups: Int32
    cluster: Int32
    clusters: Int32


@cute.jit
def _digits(count: Int32, grid: Grid):
    rest = count // grid.group
    return count - rest * grid.group, rest % grid.columns, rest // grid.columns


@cute.jit
def first_tile(grid: Grid):
    return _digits(grid.cluster, grid)


@cute.jit
def step_of(grid: Grid):
    """The distance between a cluster's tiles."""
    return _digits(grid.clusters, grid)


@cute.jit
def next_tile(tile, step, grid: Grid):
    row, column, group = tile[0] + step[0], tile[1] + step[1], tile[2] + step[2]
    if row >= grid.group:
        row = row - grid.group
        column = column + 1
    if column >= grid.columns:
        column = column - grid.columns
        group = group + 1
    return row, column, group


@cute.jit
def row_of(tile, grid: Grid) -> Int32:
    """The tile's row; the last group may reach beyond the last, to tiles that are none."""
    return tile[2] * grid.group + tile[0]


@cute.jit
def remains(tile, grid: Grid) -> Boolean:
    return tile[2] < grid.groups
