"""The GEMM on Hopper: out = (A B^T) * alpha + bias, with A decoded and B as it is stored.

There are as many programs as the SMs hold. Either each has every so many-th tile, or all steps of
all tiles are shared out evenly among them, so that none waits for a last, half-empty wave
("stream-K": Osama et al., 2023). The sum of a tile that several programs have steps of is then made
by the one that has the last, in a fixed order: the same bits each time.
"""

from typing import NamedTuple

import torch
from torch import Tensor
from triton.experimental import gluon
from triton.experimental.gluon import language as gl

from nvfp4.backends.triton.gemm.config import HOPPER_BN, K_GROUP, HopperConfig, sms
from nvfp4.backends.triton.hopper.epilogue import early, load_factors, rows_and_columns, store
from nvfp4.backends.triton.hopper.pipeline import (
    BN,
    FIRST_REGISTERS,
    ROWS,
    await_previous,
    copy_activations,
    copy_weights,
    describe,
    first_place,
    multiply,
    pipeline,
    registers_of_roles,
    sums_layout,
)
from nvfp4.backends.triton.runtime.compat import barrier
from nvfp4.backends.triton.runtime.launch import Launch, cdiv

QUADS_LAYOUT = gl.constexpr(gl.BlockedLayout([1, 4], [32, 1], [4, 1], [1, 0]))

BAND = 8
"""Tiles of rows that are multiplied beside each other, by the same weights."""


@gluon.jit
def _tile_at(tile, tiles_m, tiles_n, BAND: gl.constexpr):
    """(m, n) of a tile: BAND tiles of m beside each other, then the next of n, to share what the L2
    cache holds.
    """
    band = tile // (BAND * tiles_n)
    rows = gl.minimum(tiles_m - band * BAND, BAND)
    within = tile % (BAND * tiles_n)
    return band * BAND + within % rows, within // rows


@gluon.jit
def _first_step(program, steps):
    """A program's first, of all steps (fewer than share_out allows)."""
    return program * steps // gl.num_programs(0)


@gluon.jit
def _program_at(step, steps):
    """Which program has a step: the last whose first is not beyond it."""
    return ((step + 1) * gl.num_programs(0) - 1) // steps


@gluon.jit
def _share(tiles, steps, SPLIT: gl.constexpr):
    """Which of all tiles' steps a program has: begin, and end."""
    program = gl.program_id(0)
    if SPLIT:
        return _first_step(program, tiles * steps), _first_step(program + 1, tiles * steps)
    else:
        return program * steps, tiles * steps


@gluon.jit
def _part(begin, end, steps, SPLIT: gl.constexpr):
    """A program's next tile, its first step of it and how many, and what is then left: begin, end.

    Of shares, the last tile comes first: what others wait for. Where no tile is split each program
    has every num_programs-th.
    """
    if SPLIT:
        tile = (end - 1) // steps
        first = gl.maximum(begin, tile * steps)
        return tile, first - tile * steps, end - first, begin, first
    else:
        return begin // steps, 0, steps, begin + gl.num_programs(0) * steps, end


# ---- sums that meet -------------------------------------------------------------------------


@gluon.jit
def _as_stored(acc, BM: gl.constexpr):
    """Sums as partial_sums has them, four to a thread, 16 bytes: [ROWS * BM / 4, 4]."""
    quads = acc.reshape([ROWS // 16, 2, 8, BM // 8, 4, 2]).permute([3, 0, 2, 4, 1, 5])
    quads = quads.reshape([ROWS * BM // 4, 4])
    return gl.convert_layout(quads, QUADS_LAYOUT, assert_trivial=True)


@gluon.jit
def _as_multiplied(quads, BM: gl.constexpr):
    """_as_stored's inverse."""
    acc = quads.reshape([BM // 8, ROWS // 16, 8, 4, 2, 2]).permute([1, 4, 2, 0, 3, 5])
    return gl.convert_layout(acc.reshape([ROWS, BM]), sums_layout(BM), assert_trivial=True)


@gluon.jit
def _places(partial_sums, program, C: gl.constexpr, BM: gl.constexpr):
    """Where a program leaves consumer C's sums."""
    row, column = rows_and_columns(ROWS * BM // 4, 4, QUADS_LAYOUT)
    return partial_sums + (2 * program + C).to(gl.int64) * (ROWS * BM) + row * 4 + column


@gluon.jit
def _leave(acc, sums, tile, C: gl.constexpr, BM: gl.constexpr):
    """For the program that has the tile's last step."""
    partial_sums, arrived = sums
    gl.store(_places(partial_sums, gl.program_id(0), C, BM), _as_stored(acc, BM))
    barrier()  # all threads' stores come before the one that counts
    gl.atomic_add(arrived + (2 * tile + C), 1, sem="release")


@gluon.jit
def _collect(acc, sums, tile, tiles, steps, C: gl.constexpr, BM: gl.constexpr):
    """A tile's sums: those of the program that has its last step, then the others', in order.

    They are waited for: those programs come earlier in the grid, left these sums first of all, and
    wait for none that comes later.
    """
    partial_sums, arrived = sums
    program = gl.program_id(0)
    first = _program_at(tile * steps, tiles * steps)
    while gl.atomic_add(arrived + (2 * tile + C), 0, sem="acquire") < program - first:
        pass
    quads = _as_stored(acc, BM)
    for each in range(first, program):
        quads += gl.load(_places(partial_sums, each, C, BM), cache_modifier=".cg")
    return _as_multiplied(quads, BM)


# ---- roles ----------------------------------------------------------------------------------


@gluon.jit
def _activations_role(pipe, a, size, BM: gl.constexpr, SPLIT: gl.constexpr, BAND: gl.constexpr):
    M, N, steps = size
    tiles_m, tiles_n = gl.cdiv(M, BM), gl.cdiv(N, BN)
    begin, end = _share(tiles_m * tiles_n, steps, SPLIT)
    await_previous()
    place = first_place()
    while begin < end:
        tile, step, count, begin, end = _part(begin, end, steps, SPLIT)
        m, _ = _tile_at(tile, tiles_m, tiles_n, BAND)
        place = copy_activations(pipe, a, place, m * BM, step, count)


@gluon.jit
def _weights_role(
    pipe, words, scales, size, BM: gl.constexpr, SPLIT: gl.constexpr, BAND: gl.constexpr
):
    M, N, steps = size
    tiles_m, tiles_n = gl.cdiv(M, BM), gl.cdiv(N, BN)
    begin, end = _share(tiles_m * tiles_n, steps, SPLIT)
    place = first_place()
    while begin < end:
        tile, step, count, begin, end = _part(begin, end, steps, SPLIT)
        _, n = _tile_at(tile, tiles_m, tiles_n, BAND)
        place = copy_weights(pipe, words, scales, place, n * BN, n, step, count)


@gluon.jit
def _multiply_part(
    pipe, ends, sums, size, place, tile, step, count, C: gl.constexpr, ALPHA_OF_ROWS: gl.constexpr,
    BM: gl.constexpr, SPLIT: gl.constexpr, BAND: gl.constexpr, PER_SM: gl.constexpr,
):  # fmt: skip
    """Consumer C's rows of `count` steps of a tile, from `place` in the rings on."""
    M, N, steps = size
    tiles_m, tiles_n = gl.cdiv(M, BM), gl.cdiv(N, BN)
    factors = None
    if early(BM, PER_SM, ALPHA_OF_ROWS, SPLIT):
        m, n = _tile_at(tile, tiles_m, tiles_n, BAND)
        factors = load_factors(ends, m * BM, n * BN + C * ROWS, M, ALPHA_OF_ROWS, BM)
    acc = multiply(pipe, place, count, C, BM, PER_SM)
    if SPLIT and step + count < steps:
        _leave(acc, sums, tile, C, BM)
    else:
        if SPLIT and step > 0:
            acc = _collect(acc, sums, tile, tiles_m * tiles_n, steps, C, BM)
        m, n = _tile_at(tile, tiles_m, tiles_n, BAND)
        store(acc, ends, factors, m * BM, n * BN + C * ROWS, M, ALPHA_OF_ROWS, BM)


@gluon.jit
def _consumer_role(
    pipe, ends, sums, size, C: gl.constexpr, ALPHA_OF_ROWS: gl.constexpr, BM: gl.constexpr,
    SPLIT: gl.constexpr, BAND: gl.constexpr, PER_SM: gl.constexpr,
):  # fmt: skip
    M, N, steps = size
    begin, end = _share(gl.cdiv(M, BM) * gl.cdiv(N, BN), steps, SPLIT)
    place = first_place()
    await_previous()
    while begin < end:
        tile, step, count, begin, end = _part(begin, end, steps, SPLIT)
        _multiply_part(
            pipe, ends, sums, size, place, tile, step, count, C, ALPHA_OF_ROWS, BM, SPLIT, BAND,
            PER_SM,
        )  # fmt: skip
        place += count


@gluon.jit(do_not_specialize=["M", "steps", "row_scale_stride"])
def _hopper_mm_kernel(
    a, words, scales, alpha, row_scale, bias, out, partial_sums, arrived, M, N, steps,
    alpha_stride, row_scale_stride, segment, ALPHA_OF_ROWS: gl.constexpr, BM: gl.constexpr,
    A_SLOTS: gl.constexpr, B_SLOTS: gl.constexpr, SPLIT: gl.constexpr, PER_SM: gl.constexpr,
    BAND: gl.constexpr,
):  # fmt: skip
    pipe = pipeline(BM, A_SLOTS, B_SLOTS)
    size = (M, N, steps)
    ends = (alpha, row_scale, bias, out, N, alpha_stride, row_scale_stride, segment)
    sums = (partial_sums, arrived)
    gl.warp_specialize(
        [
            (_consumer_role, (pipe, ends, sums, size, 0, ALPHA_OF_ROWS, BM, SPLIT, BAND, PER_SM)),
            (_consumer_role, (pipe, ends, sums, size, 1, ALPHA_OF_ROWS, BM, SPLIT, BAND, PER_SM)),
            (_weights_role, (pipe, words, scales, size, BM, SPLIT, BAND)),
            (_activations_role, (pipe, a, size, BM, SPLIT, BAND)),
        ],
        [4, 1, 1],
        registers_of_roles(PER_SM),
    )


class Shares(NamedTuple):
    """How the steps are shared out. partial_sums: float32 [programs, BN, BM], what each leaves of
    its last tile; arrived: int32 [2 * tiles], how many have left theirs, zeroed by the kernel
    before. None where each tile is one program's.
    """

    programs: int
    partial_sums: Tensor | None = None
    arrived: Tensor | None = None


def share_out(m: int, n: int, k: int, config: HopperConfig, device: torch.device) -> Shares:
    tiles = cdiv(m, config.BM) * cdiv(n, HOPPER_BN)
    if not config.split:
        return Shares(min(config.per_sm * sms(device), tiles))
    steps = tiles * (k // K_GROUP)
    programs = min(config.per_sm * sms(device), steps)
    if steps * programs >= 2**31:
        raise ValueError(f"{config} shares out too many steps for 32 bits: {m} x {n} x {k}")
    sums = torch.empty(programs, HOPPER_BN, config.BM, device=device)
    return Shares(programs, sums, torch.empty(2 * tiles, dtype=torch.int32, device=device))


def plan_multiply(
    a: Tensor,
    words: Tensor,
    scales: Tensor,
    alpha: Tensor,
    row_scale: Tensor | None,
    bias: Tensor | None,
    out: Tensor,
    config: HopperConfig,
    shares: Shares,
) -> Launch:
    """a float16 [M, K] decoded, words [N, K/4], scales as bytes, alpha float32 [1 or M, S],
    row_scale float32 [1] or [M], bias [N], out [M, N].
    """
    (m, n), k = out.shape, a.shape[1]
    return Launch(
        _hopper_mm_kernel,
        (shares.programs,),
        (
            *describe(a, words, scales, config), alpha, row_scale, bias, out,
            shares.partial_sums, shares.arrived, m, n, k // K_GROUP, alpha.shape[1],
            int(row_scale is not None and row_scale.numel() > 1), n // alpha.shape[1],
        ),
        {
            "ALPHA_OF_ROWS": alpha.shape[0] > 1,
            "BM": config.BM,
            "A_SLOTS": config.a_slots,
            "B_SLOTS": config.b_slots,
            "SPLIT": config.split,
            "PER_SM": config.per_sm,
            "BAND": BAND,
        },
        num_warps=4,
        num_stages=1,
        most_registers=FIRST_REGISTERS[config.per_sm],
        overlaps=True,
    )  # fmt: skip
