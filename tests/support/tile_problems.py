"""A problem for each tile of the sm_100 GEMM, and the launch that computes it.

Tests that run a tile and tests that read its machine code take the same kernel, which is compiled
once.
"""

from functools import cache

import torch
from cases import Shape
from torch import Tensor

import nvfp4
from nvfp4.backends.cutedsl.gemm.choose import NARROW, SPLIT, TILES
from nvfp4.backends.cutedsl.gemm.config import Kernel, Tile
from nvfp4.backends.cutedsl.gemm.launch import plan
from nvfp4.calls import Mm

CLUSTERS = (
    Tile(128, 128, 2, 2),
    Tile(128, 192, 1, 2),
    Tile(128, 64, 4, 4),
    Tile(128, 256, 2, 2),
    Tile(256, 64, 2, 2),
    Tile(256, 128, 4, 1),
    Tile(256, 192, 2, 4),
    Tile(256, 256, 4, 2),
)
ALL = (*TILES, *NARROW, *SPLIT, *CLUSTERS)


@cache
def exact_operands(shape: Shape) -> tuple[nvfp4.QuantizedTensor, nvfp4.QuantizedTensor]:
    """With scales of 1/2, 1 and 2, so that every float32 sum is exact."""
    torch.manual_seed(shape.m + shape.n + shape.k)

    def operand(rows: int) -> nvfp4.QuantizedTensor:
        data = torch.randint(0, 256, (rows, shape.k // 2), dtype=torch.uint8)
        scales = torch.tensor([0.5, 1.0, 2.0])[torch.randint(0, 3, (rows, shape.k // 16))]
        swizzled = nvfp4.swizzle_scales(scales.to(torch.float8_e4m3fn))
        return nvfp4.QuantizedTensor(data, swizzled, torch.tensor(1.0))

    return operand(shape.m), operand(shape.n)


def eighths(*shape: int) -> Tensor:
    return torch.randint(1, 9, shape) / 8


def tile_problem(tile: Tile) -> Shape:
    """Ragged, with more tiles than clusters, and as many stages as split-K needs."""
    rows, columns = tile.cluster_tile
    if tile.swapped:
        return Shape(tile.columns - 1, 264, max(320, 256 * tile.split_k + 32))
    return Shape(rows + 72, columns + 72, 576)


def tile_call(tile: Tile, shape: Shape) -> Mm:
    """With a bias and, for all but the plain tiles, a scale a row."""
    a, b = exact_operands(shape)
    alpha, bias = eighths(1, 1), eighths(shape.n)
    scale = None if tile in TILES else eighths(shape.m)
    return Mm(a.data, b.data, a.scales, b.scales, alpha, scale, bias)


def kernel_of(tile: Tile) -> Kernel:
    """The kernel that computes the tile's problem."""
    shape = tile_problem(tile)
    out = torch.empty(shape.m, shape.n, dtype=torch.bfloat16)
    return plan(tile_call(tile, shape), out, tile, 2 * tile.cluster).kernel
