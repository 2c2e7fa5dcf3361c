"""What the epilogue's warps are given: which warp of the CTA each is, and where D goes."""

from typing import Any, NamedTuple

import cutlass.cute as cute
from cutlass import Int32, Int64


class EpilogueWarp(NamedTuple):
    """An epilogue warp of CTA `rank` of the cluster: number `warp` of those that have its columns.

    r: the thread's row in the CTA's tile; part: which part of the columns it has, where two warps
    share its rows.
    """

    smem: Int32
    rank: Int32
    warp: Int32
    lane: Int32
    r: Int32
    part: Int32 | int


class Output(NamedTuple):
    """D's address and row stride in elements; `atom` carries its tensor map, if TMA stores it."""

    atom: Any
    pointer: cute.Pointer
    stride: Int64
