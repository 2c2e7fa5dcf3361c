"""Grouped scheduling: the device finds which expert each tile belongs to.

Tiles are counted expert after expert, in each along its tokens first: clusters that run together
share weights. Before the roles begin a warp of each CTA reads the offsets, once, and writes a table
to shared memory:

    coarse  [32]          the first tile of each lane's experts: lane l has 16 l .. 16 l + 15
    first   [MAX_EXPERTS]      each expert's first tile; of experts that do not exist, all tiles
    edges   [MAX_EXPERTS + 1]  where each expert's rows begin
    tiles                 all tiles

A tile's expert is the last whose first tile is not beyond it: two loads and two votes of a warp
find it, whatever the number of experts; the empty ones have no tiles and are never found.
"""

from typing import NamedTuple

import cutlass
import cutlass.cute as cute
from cutlass import Boolean, Int32, Uint32, const_expr

from nvfp4.backends.cutedsl.gemm import ptx
from nvfp4.backends.cutedsl.gemm.layouts import Layout
from nvfp4.backends.cutedsl.gemm.sizes import EXPERTS_A_LANE, SCALE_LANES, SCALE_ROWS
from nvfp4.spec.grouped import MAX_EXPERTS

FIRST = 4 * 32
EDGES = FIRST + 4 * MAX_EXPERTS
LAST_EDGE = EDGES + 4 * MAX_EXPERTS


class TileCoord(NamedTuple):
    """A tile's coordinates: its first row and column in D, and where D ends for its expert.

    a_row, b_row: its first rows in A and B, which lie in a_scale_tile and b_scale_tile; b_group:
    B's group of 32 rows within the scale tile.
    """

    row: Int32
    column: Int32
    row_end: Int32
    column_end: Int32
    a_row: Int32
    b_row: Int32
    a_scale_tile: Int32
    b_scale_tile: Int32
    b_group: Int32
    expert: Int32


class Experts(NamedTuple):
    """What the host knows of the experts: the address of their offsets, and how many there are.

    weight_rows, weight_scale_tiles: of each expert's weights; weight_tiles: tiles across them.
    """

    offsets: cute.Pointer
    count: Int32
    weight_rows: Int32
    weight_scale_tiles: Int32
    weight_tiles: Int32


class Groups(NamedTuple):
    """The schedule of grouped tiles: the table, all tiles, and which cluster this is of how many.

    The weights are as Experts has them; offset: (row, column) of the caller's part
    of each cluster tile.
    """

    table: Int32
    tiles: Int32
    cluster: Int32
    clusters: Int32
    weight_rows: Int32
    weight_scale_tiles: Int32
    offset: tuple[Int32, Int32] = (0, 0)

    def at_offset(self, offset: tuple[Int32, Int32]) -> "Groups":
        return self._replace(offset=offset)


@cute.jit
def tabulate(layout: cutlass.Constexpr[Layout], experts: Experts, table: Int32, mine: Boolean):
    """Write the table; one warp does, whose `mine` is true."""
    if mine:
        cute.arch.griddepcontrol_wait()
        lane = cute.arch.lane_idx()
        own = lane * EXPERTS_A_LANE
        edges = [
            (experts.offsets + cutlass.min(own + i, experts.count)).load()
            for i in range(EXPERTS_A_LANE + 1)
        ]
        before = [Int32(0)]
        for i in cutlass.range_constexpr(EXPERTS_A_LANE):
            tiles = token_tiles(layout, edges[i], edges[i + 1]) * experts.weight_tiles
            before.append(before[i] + tiles)
        end = before[EXPERTS_A_LANE]
        for distance in (1, 2, 4, 8, 16):
            below = cute.arch.shuffle_sync_up(end, distance)
            end = end + (below if lane >= distance else Int32(0))
        start = end - before[EXPERTS_A_LANE]
        ptx.store_shared(table + 4 * lane, [start])
        for i in cutlass.range_constexpr(0, EXPERTS_A_LANE, 4):
            at = table + 4 * own
            ptx.store_shared(at, [start + b for b in before[i : i + 4]], FIRST + 4 * i)
            ptx.store_shared(at, edges[i : i + 4], EDGES + 4 * i)
        if lane == 31:
            ptx.store_shared(table, [edges[EXPERTS_A_LANE], end], LAST_EDGE)


@cute.jit
def token_tiles(layout: cutlass.Constexpr[Layout], begin: Int32, end: Int32) -> Int32:
    step = layout.token_step
    return end - begin + (step - 1) >> (step.bit_length() - 1)


@cute.jit
def schedule(experts: Experts, table: Int32, cluster: Int32, clusters: Int32) -> Groups:
    tiles = ptx.load_shared(table, 1, Int32, LAST_EDGE + 4)[0]
    tiles = cute.arch.make_warp_uniform(tiles)
    return Groups(table, tiles, cluster, clusters, experts.weight_rows, experts.weight_scale_tiles)


@cute.jit
def tile_coord(layout: cutlass.Constexpr[Layout], tile: Int32, groups: Groups) -> TileCoord:
    """Where tile number `tile` is (the whole warp)."""
    lane, table = cute.arch.lane_idx(), groups.table
    coarse = ptx.load_shared(table + 4 * lane, 1, Int32)[0]
    chunk = cute.arch.popc(cute.arch.vote_ballot_sync(coarse <= tile)) - 1
    own = table + chunk * (4 * EXPERTS_A_LANE)
    fine = ptx.load_shared(own + lane % EXPERTS_A_LANE * 4, 1, Int32, FIRST)[0]
    found = cute.arch.vote_ballot_sync(fine <= tile) & ((1 << EXPERTS_A_LANE) - 1)
    within = cute.arch.popc(found) - 1
    expert = chunk * EXPERTS_A_LANE + within
    at = own + 4 * within
    first, begin, end = (
        cute.arch.make_warp_uniform(ptx.load_shared(at, 1, Int32, offset)[0])
        for offset in (FIRST, EDGES, EDGES + 4)
    )

    high = token_tiles(layout, begin, end)
    tile = tile - first
    weight_tile = Int32(Uint32(tile) // Uint32(high))
    token = (tile - weight_tile * high) * layout.token_step
    weight = weight_tile * layout.weight_step
    token_scales = begin // SCALE_ROWS + expert
    weight_scales = expert * groups.weight_scale_tiles
    weight_row = expert * groups.weight_rows
    row_offset, column_offset = groups.offset
    if const_expr(layout.tile.swapped):
        row, column = weight + row_offset, token + column_offset
        return TileCoord(
            row, begin + column, groups.weight_rows, end, weight_row + row, begin + column,
            weight_scales + row // SCALE_ROWS, token_scales + column // SCALE_ROWS,
            column % SCALE_ROWS // SCALE_LANES, expert,
        )  # fmt: skip
    row, column = token + row_offset, weight + column_offset
    return TileCoord(
        begin + row, column, end, groups.weight_rows, begin + row, weight_row + column,
        token_scales + row // SCALE_ROWS, weight_scales + column // SCALE_ROWS,
        column % SCALE_ROWS // SCALE_LANES, expert,
    )  # fmt: skip
