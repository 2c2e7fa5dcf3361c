"""How the quantizers cut a tensor into tiles."""

from typing import NamedTuple

from nvfp4.backends.triton.launch import next_power_of_2
from nvfp4.spec.swizzle import TILE_BLOCKS

TILE_ELEMENTS = 4096
"""A tile's size: 32 elements a thread with 4 warps, two 16-byte loads of bf16 in flight."""

MIN_COLUMNS = 64
"""One swizzled tile's width in elements; narrower tiles would write parts of a 4-byte scale group.
"""

LONGEST_ROW = 65536
"""The longest row that one program keeps in registers: 64 float32 a thread in 32 warps."""


class Tile(NamedTuple):
    rows: int
    columns: int
    num_warps: int


def choose_tile(k: int) -> Tile:
    """For a known global scale: tiles of any width, as wide as K allows up to 512."""
    columns = min(max(next_power_of_2(k), MIN_COLUMNS), 512)
    return Tile(TILE_ELEMENTS // columns, columns, 4)


def choose_row_tile(k: int) -> Tile:
    """For row scales made on the way: whole rows, so that x is read once."""
    columns = max(next_power_of_2(k), MIN_COLUMNS)
    rows = max(1, TILE_ELEMENTS // columns)
    return Tile(rows, columns, min(max(rows * columns // 1024, 4), 32))


def padded_columns(scale_columns: int) -> int:
    """The elements of K that a row of scales covers, padding included."""
    return scale_columns * 16


assert MIN_COLUMNS % (16 * TILE_BLOCKS) == 0
