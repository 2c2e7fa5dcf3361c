"""Which tiles a cluster computes, one after the other: static persistent scheduling.

Tiles are counted along M first: clusters that run together share few tiles of B, and all of A,
which fits in L2 (126 MB: 16 k rows of K = 8192 are 75). A cluster takes every `clusters`-th tile.
All roles count alike, by additions.
"""

from typing import NamedTuple

import cutlass.cute as cute
from cutlass import Boolean, Int32


class Grid(NamedTuple):
    """The cluster tiles that D takes, and which cluster this is of how many."""

    rows: Int32
    columns: Int32
    cluster: Int32
    clusters: Int32


class Walk(NamedTuple):
    """How a cluster gets from tile to tile, in rows and columns of D: `rows` of tiles in all;
    backward: the step in rows, less all of them; forward: the step in columns, and one tile more;
    one tile's columns; where the columns end.
    """

    rows: Int32
    backward: Int32
    forward: Int32
    tile_columns: int
    end: Int32


@cute.jit
def start(grid: Grid, cluster_tile, place):
    """Where the first tile is, (row, column) of D, and how to go on; of the cluster, or of a part
    of it that is at `place`, (row, column) in the cluster's tile.
    """
    high, wide = cluster_tile
    column, step = grid.cluster // grid.rows, grid.clusters // grid.rows
    first_row = (grid.cluster - column * grid.rows) * high
    first = (first_row + place[0], column * wide + place[1])
    rows = grid.rows * high
    backward = (grid.clusters - step * grid.rows) * high - rows
    return first, Walk(rows, backward, (step + 1) * wide, wide, grid.columns * wide)


@cute.jit
def next_tile(tile, walk: Walk):
    row, column = tile[0] + walk.backward, tile[1] + walk.forward
    if row < 0:
        row = row + walk.rows
        column = column - walk.tile_columns
    return row, column


@cute.jit
def remains(tile, walk: Walk) -> Boolean:
    return tile[1] < walk.end
