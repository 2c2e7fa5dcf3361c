"""Tile sizes of the quantizers and of the kernels that prepare activations.

Tiles for many rows were measured on an H200 (bench/results/h200_quantizer_tiles.json). Few rows use
one block per thread, which finishes first; `python -m nvfp4.bench.sweep quantizers --shapes
1x7168,64x7168` times them.
"""

from typing import NamedTuple

from nvfp4.backends.emulation import emulated_sm
from nvfp4.backends.triton.runtime.architecture import interpreting
from nvfp4.backends.triton.runtime.launch import next_power_of_2
from nvfp4.spec.format import BLOCK
from nvfp4.spec.swizzle import TILE_BLOCKS

MIN_COLUMNS = BLOCK * TILE_BLOCKS
"""Elements of K in a swizzled scale tile. A narrower tile would write part of a 4-byte group."""

LONGEST_ROW = 65536
"""The longest row that one program holds in registers: 64 float32 a thread in 32 warps."""

RESIDENT_ROWS = 512
"""About as many rows as an H200 runs at a time, one row a program."""

MAX_WARPS = 32
"""The most warps of a program, on any GPU."""


class Tile(NamedTuple):
    """A tile of rows x columns elements, one a program."""

    rows: int
    columns: int
    num_warps: int


def choose_tile(k: int, elements: int, widest: int, num_warps: int) -> Tile:
    """Choose a tile of `elements` for a known global scale, as wide as K and `widest` allow.

    The interpreter takes as long for a small tile as for a large one, so its tiles are larger.
    """
    elements *= 4 if interpreting() and not emulated_sm() else 1
    columns = min(max(next_power_of_2(k), MIN_COLUMNS), widest)
    return Tile(max(1, elements // columns), columns, num_warps)


def choose_row_tile(rows: int, k: int) -> Tile:
    """Choose a tile of whole rows, which finds their row scales and reads x once."""
    columns = max(next_power_of_2(k), MIN_COLUMNS)
    tile_rows = max(1, 4096 // columns)
    warps = tile_rows * columns // (32 * (BLOCK if rows <= RESIDENT_ROWS else 4 * BLOCK))
    return Tile(tile_rows, columns, min(max(warps, 1), MAX_WARPS))


def choose_rounding_tile(rows: int, width: int) -> Tile:
    """Choose a tile for the activations of a GEMM, `width` columns in whole groups of K.

    Few rows use one block per thread, which finishes first. Many rows use at least four warps.
    """
    columns = min(next_power_of_2(width), LONGEST_ROW)
    tile_rows = max(1, 2048 // columns)
    elements = tile_rows * columns
    warps = elements // (32 * BLOCK) if rows <= RESIDENT_ROWS else max(4, elements // 2048)
    return Tile(tile_rows, columns, min(warps, MAX_WARPS))
