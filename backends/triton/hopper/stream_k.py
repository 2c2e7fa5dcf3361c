"""Stream-K on Hopper: the programs share all steps of all tiles evenly (Osama et al., 2023).

No program then waits for a last, half-empty wave. Where several programs have steps of one tile,
the one with the tile's last step adds their partial sums in a fixed order: the same bits each time.
"""

from typing import NamedTuple

import torch
from torch import Tensor
from triton.experimental import gluon
from triton.experimental.gluon import language as gl

from nvfp4.backends.triton.gemm.config import HOPPER_BN, K_GROUP, HopperConfig, sms
from nvfp4.backends.triton.hopper.epilogue import rows_and_columns
from nvfp4.backends.triton.hopper.pipeline import ROWS, accumulator_layout
from nvfp4.backends.triton.runtime.compat import barrier
from nvfp4.backends.triton.runtime.launch import cdiv

QUADS_LAYOUT = gl.constexpr(gl.BlockedLayout([1, 4], [32, 1], [4, 1], [1, 0]))
"""Partial sums, four float32 to a thread: 16 bytes, the widest load and store."""


class Schedule(NamedTuple):
    """How many programs share the tiles, and where they reduce what they split.

    partial_sums: float32 [programs, BN, BM], one partial tile of each program.
    tile_counters: int32 [2 * tiles], a consumer's count of stored partials; the kernel before
    zeroes them. Both are None where no tile is split.
    """

    programs: int
    partial_sums: Tensor | None = None
    tile_counters: Tensor | None = None


def make_schedule(m: int, n: int, k: int, config: HopperConfig, device: torch.device) -> Schedule:
    """Plan the programs of an [m, n, k] GEMM and allocate what stream-K needs.

    ValueError: the steps times the programs exceed 32 bits.
    """
    tiles = cdiv(m, config.BM) * cdiv(n, HOPPER_BN)
    if not config.stream_k:
        return Schedule(min(config.per_sm * sms(device), tiles))
    steps = tiles * (k // K_GROUP)
    programs = min(config.per_sm * sms(device), steps)
    if steps * programs >= 2**31:
        raise ValueError(f"{config} has too many steps for 32 bits: {m} x {n} x {k}")
    shape = (programs, HOPPER_BN, config.BM)
    partials = torch.empty(shape, dtype=torch.float32, device=device)
    return Schedule(programs, partials, torch.empty(2 * tiles, dtype=torch.int32, device=device))


@gluon.jit
def _first_step_of(program, steps):
    """The first of a program's steps; make_schedule keeps the product within 32 bits."""
    return program * steps // gl.num_programs(0)


@gluon.jit
def _program_of(step, steps):
    """The program that has a step."""
    return ((step + 1) * gl.num_programs(0) - 1) // steps


@gluon.jit
def steps_of_program(tiles, steps, STREAM_K: gl.constexpr):
    """The range of steps (begin, end) that this program works through."""
    program = gl.program_id(0)
    if STREAM_K:
        return _first_step_of(program, tiles * steps), _first_step_of(program + 1, tiles * steps)
    else:
        return program * steps, tiles * steps


@gluon.jit
def next_tile(begin, end, steps, STREAM_K: gl.constexpr):
    """Take the next tile from the range: (tile, its first step, how many, the rest's begin, end).

    With stream-K a program takes its last tile first, because another program may wait for that
    one's partial sum. Without, it takes every num_programs-th tile.
    """
    if STREAM_K:
        tile = (end - 1) // steps
        first = gl.maximum(begin, tile * steps)
        return tile, first - tile * steps, end - first, begin, first
    else:
        return begin // steps, 0, steps, begin + gl.num_programs(0) * steps, end


@gluon.jit
def _to_partial_layout(acc, BM: gl.constexpr):
    """Rearrange an accumulator [ROWS, BM] to [ROWS * BM / 4, 4] without moving data."""
    quads = acc.reshape([ROWS // 16, 2, 8, BM // 8, 4, 2]).permute([3, 0, 2, 4, 1, 5])
    quads = quads.reshape([ROWS * BM // 4, 4])
    return gl.convert_layout(quads, QUADS_LAYOUT, assert_trivial=True)


@gluon.jit
def _to_accumulator_layout(quads, BM: gl.constexpr):
    """Invert _to_partial_layout."""
    acc = quads.reshape([BM // 8, ROWS // 16, 8, 4, 2, 2]).permute([1, 4, 2, 0, 3, 5])
    return gl.convert_layout(acc.reshape([ROWS, BM]), accumulator_layout(BM), assert_trivial=True)


@gluon.jit
def _partial_pointers(partial_sums, program, C: gl.constexpr, BM: gl.constexpr):
    """Pointers to the partial sum of a program's consumer C."""
    row, column = rows_and_columns(ROWS * BM // 4, 4, QUADS_LAYOUT)
    return partial_sums + (2 * program + C).to(gl.int64) * (ROWS * BM) + row * 4 + column


@gluon.jit
def store_partial(acc, partials, tile, C: gl.constexpr, BM: gl.constexpr):
    """Store this program's partial sum of a tile, and count it."""
    partial_sums, tile_counters = partials
    gl.store(_partial_pointers(partial_sums, gl.program_id(0), C, BM), _to_partial_layout(acc, BM))
    barrier()  # every thread has stored before one counts
    gl.atomic_add(tile_counters + (2 * tile + C), 1, sem="release")


@gluon.jit
def reduce_partials(acc, partials, tile, tiles, steps, C: gl.constexpr, BM: gl.constexpr):
    """Add to a tile's last partial sum, in `acc`, those of the programs before it, in order.

    Waiting for them cannot deadlock: these programs come earlier in the grid, store this partial
    sum before all else, and wait for no program that comes later.
    """
    partial_sums, tile_counters = partials
    program = gl.program_id(0)
    first = _program_of(tile * steps, tiles * steps)
    while gl.atomic_add(tile_counters + (2 * tile + C), 0, sem="acquire") < program - first:
        pass
    quads = _to_partial_layout(acc, BM)
    for each in range(first, program):
        quads += gl.load(_partial_pointers(partial_sums, each, C, BM), cache_modifier=".cg")
    return _to_accumulator_layout(quads, BM)
