"""Grouped problems for the sm_100 kernels, and what the spec makes of them in float64."""

from dataclasses import dataclass
from typing import NamedTuple

import pytest
import torch
from torch import Tensor

from nvfp4.backends.cutedsl.gemm.choose import GLU
from nvfp4.backends.cutedsl.gemm.config import Tile
from nvfp4.spec.glu import GELU_TANH, SILU
from nvfp4.spec.grouped import swizzle_grouped_scales
from nvfp4.spec.quantize import decode
from nvfp4.spec.swizzle import swizzle_scales

runs = pytest.mark.usefixtures("emulated")

POISON = 7.25
BYTE = 0x5A
FUSED = (
    (GLU[0], SILU, None),
    (GLU[0], GELU_TANH, 3.0),
    (GLU[1], SILU, 3.0),
    (GLU[1], GELU_TANH, None),
)
"""Each tile of a fused kernel with each activation: the tile, the activation, a limit."""
SQUARE, SWAPPED, PAIR = Tile(128, 128), Tile(128, 64, swapped=True), Tile(256, 256, 2)


@dataclass(frozen=True)
class Routing:
    """Rows of each expert, and rows of nobody after them."""

    name: str
    counts: tuple[int, ...]
    nobodys: int = 0

    def __str__(self) -> str:
        return self.name

    @property
    def edges(self) -> list[int]:
        return [sum(self.counts[:e]) for e in range(len(self.counts) + 1)]

    @property
    def rows(self) -> int:
        return sum(self.counts) + self.nobodys


MIXED = Routing("mixed", (5, 0, 130, 33), 3)
ROUTINGS = [
    Routing("uniform", (40, 40, 40, 40)),
    Routing("skewed", (257, 1, 3, 2), 1),
    Routing("the first empty", (0, 17, 20)),
    Routing("the last empty", (17, 20, 0), 5),
    Routing("many empty", (*[0] * 20, 9, *[0] * 30, 31, *[0] * 12), 7),
    Routing("one has all", (0, 0, 200, 0)),
    Routing("within a warp", (1, 31, 32, 33, 30)),
    Routing("128 rows", (128, 128), 128),
    Routing("129 rows", (129, 129)),
    Routing("one row", (1,)),
    Routing("one row of eight", (0, 0, 0, 0, 0, 1, 0, 0)),
    Routing("one expert", (150,), 10),
    Routing("nobody's rows alone", (0, 0, 0), 4),
]


class Operands(NamedTuple):
    """Launchers' operands, and the linear scales that theirs were made of."""

    a: Tensor
    b: Tensor
    a_scales: Tensor
    b_scales: Tensor
    offsets: Tensor
    a_linear: Tensor
    b_linear: Tensor


def operands(routing: Routing, n: int, k: int, exact: bool = True) -> Operands:
    torch.manual_seed(routing.rows + n + k)
    experts, rows = len(routing.counts), routing.rows

    def scales(*shape: int) -> Tensor:
        if not exact:
            return (torch.rand(shape) * 3).to(torch.float8_e4m3fn)
        return torch.tensor([0.5, 1.0, 2.0])[torch.randint(0, 3, shape)].to(torch.float8_e4m3fn)

    def data(*shape: int) -> Tensor:
        return torch.randint(0, 256, shape, dtype=torch.uint8)

    offsets = torch.tensor(routing.edges, dtype=torch.int32)
    a_linear, b_linear = scales(rows, k // 16), scales(experts, n, k // 16)
    return Operands(
        data(rows, k // 2),
        data(experts, n, k // 2),
        swizzle_grouped_scales(a_linear, offsets),
        torch.stack([swizzle_scales(own) for own in b_linear]),
        offsets,
        a_linear,
        b_linear,
    )


def eighths(*shape: int) -> Tensor:
    return torch.randint(1, 9, shape) / 8


def expected(x: Operands, routing: Routing, alpha, row_scale, bias, dtype) -> Tensor:
    """Expert by expert in float64; what is nobody's keeps its poison."""
    edges, n = routing.edges, x.b.shape[1]
    out = torch.full((routing.rows, n), POISON, dtype=dtype)
    for e in range(len(routing.counts)):
        own = slice(edges[e], edges[e + 1])
        if edges[e] == edges[e + 1]:
            continue
        tokens = decode(x.a[own], x.a_linear[own]).double()
        sums = (tokens @ decode(x.b[e], x.b_linear[e]).double().T).float()
        factor = alpha[e].repeat_interleave(n // alpha.shape[1])
        if row_scale is not None:
            factor = row_scale[own, None] * factor
        result = sums.double() * factor.double()
        if bias is not None:
            result += bias[e].double()
        out[own] = result.float().to(dtype)
    return out
