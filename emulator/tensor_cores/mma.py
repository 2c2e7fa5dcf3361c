"""The tensor core: copies to tensor memory, MMAs and commits (PTX ISA: tcgen05.cp, mma, commit).

Copies, MMAs and commits of a CTA run in the order of their issue, each after a random delay that
keeps the order. An MMA is computed exactly and rounded to float32 once, when it is added to the
accumulator; hardware's order of summation within one instruction is not documented.

Matrix products go through torch: its thread count can be set for a run and set back, while numpy's
BLAS reads the environment once, at import, and loses 20 times to threads on matrices this small.
"""

from collections.abc import Callable, Mapping
from functools import partial
from typing import Any

import numpy as np
import torch

from nvfp4.emulator import ptx
from nvfp4.emulator.hazards import Event, Hazard, Kind
from nvfp4.emulator.isa.accesses import cta_at
from nvfp4.emulator.isa.mbarriers import mbarrier_at
from nvfp4.emulator.isa.program import Modifiers, Operation, Program, Step
from nvfp4.emulator.lanes import pick
from nvfp4.emulator.memory.global_memory import RANK_SHIFT
from nvfp4.emulator.tensor_cores.cta_groups import group_of, pair_of
from nvfp4.emulator.tensor_cores.descriptors import (
    InstructionDescriptor,
    chunks,
    instruction_descriptor,
    matrix_descriptor,
)

_K = 64  # elements of K in one MMA
_GROUP = 16  # of them under one scale
_ALL_QUARTERS = slice(None)

_E2M1 = np.array([0, 0.5, 1, 1.5, 2, 3, 4, 6, -0.0, -0.5, -1, -1.5, -2, -3, -4, -6])
E2M1_PAIRS = np.stack([_E2M1[np.arange(256) & 15], _E2M1[np.arange(256) >> 4]], 1)
"""A byte's two elements: the low nibble comes first."""


def _e4m3(code: int) -> float:
    """UE4M3: the sign bit does not count; the top code is NaN."""
    exponent, mantissa = code >> 3 & 15, code & 7
    if code & 127 == 127:
        return float("nan")
    return (mantissa / 8 if not exponent else 1 + mantissa / 8) * 2.0 ** (max(exponent, 1) - 7)


_E4M3 = np.array([_e4m3(code) for code in range(256)])
_E8M0 = np.array([2.0 ** (code - 127) for code in range(255)] + [float("nan")])


class TensorPipe:
    """The order in which a CTA's tensor core works."""

    def __init__(self, machine: Any) -> None:
        self._machine = machine
        self._last = 0

    def issue(self, warp: Any, instruction: ptx.Instruction, work: Callable[[], None]) -> None:
        machine = self._machine
        self._last = max(self._last, machine.time + machine.delay())

        def run() -> None:
            try:
                work()
            except Hazard as hazard:
                raise hazard.at(instruction.line, instruction.text, warp.where) from None

        machine.at(self._last, run)


def _issue_event(warp: Any, instruction: ptx.Instruction) -> tuple[int, int]:
    """(event, what it has observed) of tensor core work: that of a warp between two commits is one
    event, and knows all that the warp issued before.
    """
    if warp.mask & (warp.mask - 1):
        raise Hazard(
            Kind.MANY_LANES, f"{warp.mask.bit_count()} lanes issue this; one of them is meant to"
        )
    if not warp.batch:
        event = Event("tensor core work from here on", instruction.line, warp.where)
        warp.batch = warp.cluster.events.new(event)
        warp.pipe_seen |= 1 << warp.batch
    warp.pipe_seen |= warp.seen
    return warp.batch, warp.pipe_seen


def _commit(instruction: ptx.Instruction, program: Program, modifiers: Modifiers) -> Step:
    group = group_of(modifiers)
    modifiers.need("mbarrier::arrive::one")
    modifiers.take("shared::cluster")
    multicast = bool(modifiers.take("multicast::cluster"))
    modifiers.need("b64")
    modifiers.done()
    base, offset = program.address(instruction.operands[0])
    mask = program.source(instruction.operands[1], 16) if multicast else None

    def step(warp: Any) -> None:
        pair_of(warp, group)
        _, seen = _issue_event(warp, instruction)
        warp.batch = 0
        address = pick(warp.registers[base], warp.mask) + offset
        targets = [address]
        if mask is not None:
            lanes = pick(warp.registers[mask], warp.mask)
            if not lanes or lanes >> len(warp.cluster.ctas):
                raise Hazard(Kind.OUT_OF_BOUNDS, f"CTA mask {lanes:#b} in this cluster")
            low = address & (1 << RANK_SHIFT) - 1
            targets = [r << RANK_SHIFT | low for r in range(16) if lanes >> r & 1]
        warp.machine.counts["commits"] += 1
        barriers = [(mbarrier_at(warp, target), cta_at(warp, target)[0]) for target in targets]
        arrivals = []
        for barrier, cta in barriers:
            observed = seen
            if cta is not warp.cta:
                event = Event("the arrival of a commit", instruction.line, warp.where)
                number = warp.cluster.events.new(event)
                cta.incoming |= 1 << number
                observed |= 1 << number
            arrivals.append((cta, partial(barrier.arrive, 1, 0, observed, 0)))

        def send() -> None:
            """Arrive in this CTA at once, and in each other one after a delay of its own."""
            for cta, arrive in arrivals:
                if cta is warp.cta:
                    arrive()
                else:
                    warp.machine.after(warp.machine.delay(), arrive)

        warp.cta.pipe.issue(warp, instruction, send)

    return step


def _cp(instruction: ptx.Instruction, program: Program, modifiers: Modifiers) -> Step:
    """32x128b.warpx4: 32 rows of 16 bytes to lanes r, r + 32, r + 64, r + 96 of 4 columns."""
    group = group_of(modifiers)
    modifiers.need("32x128b")
    modifiers.need("warpx4")
    modifiers.done()
    to, to_offset = program.address(instruction.operands[0])
    source = program.source(instruction.operands[1], 64)

    def step(warp: Any) -> None:
        machine, registers = warp.machine, warp.registers
        event, seen = _issue_event(warp, instruction)
        where = matrix_descriptor(pick(registers[source], warp.mask))
        rows = chunks(where, 32, 1)[:, 0]
        address = pick(registers[to], warp.mask) + to_offset
        if address >> 16:
            raise Hazard(Kind.TMEM, f"address {address:#x}: a copy to all quarters is to lane 0")
        ctas = pair_of(warp, group)
        machine.counts["tensor copies"] += 1
        for cta in ctas:
            cta.shared.bound(int(rows.min()) * 16, int(rows.max()) * 16 + 16)
            columns = cta.tensor.region(address, 4)
            if machine.options.check:
                cta.shared.chunk_shadow.read(rows, event, seen, warp.fenced)
                cta.tensor.shadow.write((_ALL_QUARTERS, columns), event, seen)

        def work() -> None:
            for cta in ctas:
                data = cta.shared.bytes.chunks[rows].view(np.uint32)
                cta.tensor.words.reshape(4, 32, -1)[:, :, columns] = data

        warp.cta.pipe.issue(warp, instruction, work)

    return step


def _mma(instruction: ptx.Instruction, program: Program, modifiers: Modifiers) -> Step:
    group = group_of(modifiers)
    modifiers.need("kind::mxf4nvf4")
    modifiers.need("block_scale")
    modifiers.need("block16", "scale_vec::4X")
    modifiers.take(*(f"collector::a::{use}" for use in ("discard", "fill", "use", "lastuse")))
    modifiers.done()
    d, a, b, description, scale_a, scale_b, enable = instruction.operands
    d_base, d_offset = program.address(d)
    a_slot, b_slot = program.source(a, 64), program.source(b, 64)
    description_slot = program.source(description, 32)
    (sa_base, sa_offset), (sb_base, sb_offset) = program.address(scale_a), program.address(scale_b)
    accumulate_slot, flip = program.predicate(enable)

    def step(warp: Any) -> None:
        machine, registers, mask = warp.machine, warp.registers, warp.mask
        event, seen = _issue_event(warp, instruction)
        ctas = pair_of(warp, group)
        shape = instruction_descriptor(pick(registers[description_slot], mask))
        _check_shape(shape, group)
        rows_b = shape.n // group
        a_rows = chunks(matrix_descriptor(pick(registers[a_slot], mask)), 128, 2)
        b_rows = chunks(matrix_descriptor(pick(registers[b_slot], mask)), rows_b, 2)
        accumulate = bool((registers[accumulate_slot] ^ flip) & mask)
        to = pick(registers[d_base], mask) + d_offset
        sa = pick(registers[sa_base], mask) + sa_offset
        sb = pick(registers[sb_base], mask) + sb_offset
        if (to | sa | sb) >> 16:
            raise Hazard(Kind.TMEM, f"addresses {to:#x}, {sa:#x}, {sb:#x}: an MMA begins at lane 0")
        for operand, column in (("A", sa), ("B", sb)):
            _check_scale_column(operand, column)
        columns_b = -(-shape.n // 32)
        for cta in ctas:
            into = cta.tensor.region(to, shape.n)
            scales_a = cta.tensor.region(sa, 4)
            scales_b = cta.tensor.region(sb, columns_b)
            for rows in (a_rows, b_rows):
                cta.shared.bound(int(rows.min()) * 16, int(rows.max()) * 16 + 16)
                if machine.options.check:
                    cta.shared.chunk_shadow.read(rows, event, seen, warp.fenced)
            if machine.options.check:
                shadow = cta.tensor.shadow
                for columns in (scales_a, scales_b, *((into,) if accumulate else ())):
                    shadow.read((_ALL_QUARTERS, columns), event, seen)
                shadow.write((_ALL_QUARTERS, into), event, seen)
        machine.counts["mma"] += 1

        def work() -> None:
            codes_b = np.concatenate([cta.shared.bytes.chunks[b_rows] for cta in ctas])
            for cta in ctas:
                words = cta.tensor.words
                table = _E8M0 if shape.scale_is_e8m0 else _E4M3
                factors_a = _scales(words, scales_a, 128, table)
                factors_b = _scales(words, scales_b, shape.n, table)
                left = _dequantize(cta.shared.bytes.chunks[a_rows], factors_a, shape.negate_a)
                right = _dequantize(codes_b, factors_b, shape.negate_b)
                product = torch.mm(torch.from_numpy(left), torch.from_numpy(right).T).numpy()
                if accumulate:
                    product += words[:, into].view(np.float32)
                words[:, into] = product.astype(np.float32).view(np.uint32)

        warp.cta.pipe.issue(warp, instruction, work)

    return step


def _check_shape(shape: InstructionDescriptor, group: int) -> None:
    if shape.m != 128 * group or not shape.n or shape.n > 256 or shape.n % (8 * group):
        raise Hazard(
            Kind.DESCRIPTOR, f"no {shape.m} x {shape.n} block-scaled MMA in cta_group::{group}"
        )


def _check_scale_column(operand: str, column: int) -> None:
    """Refuses scale factors of 16 elements that begin at an odd column.

    PTX ISA does not say so. NVIDIA's and other public kernels move these scales by two columns, 64
    rows, even for an N of 32, and one of them reports that odd columns cannot be reached.
    """
    if column % 2:
        raise Hazard(
            Kind.TMEM,
            f"{operand}'s scale factors begin at column {column}: hardware addresses scales of 16"
            " elements in pairs of columns (64 rows), so they need an even one",
        )


def _scales(words: np.ndarray, columns: slice, rows: int, table: np.ndarray) -> np.ndarray:
    """[rows, 4] scale factors: those of row r are the bytes of lane r % 32, column r // 32."""
    quarters = words[:, columns].reshape(4, 32, -1)
    if not (quarters == quarters[0]).all():
        raise Hazard(Kind.TMEM, "scale factors differ between the 32-lane quarters")
    codes = np.ascontiguousarray(quarters[0].T).reshape(-1).view(np.uint8)
    return table[codes[: 4 * rows]].reshape(rows, 4)


def _dequantize(codes: np.ndarray, scales: np.ndarray, negate: bool) -> np.ndarray:
    """[rows, 64] values of rows of 32 bytes and their scales: exact in float64."""
    rows = len(codes)
    values = E2M1_PAIRS[codes.view(np.uint8).reshape(rows, -1)].reshape(rows, _K // _GROUP, _GROUP)
    values *= scales[:, :, None]
    return -values.reshape(rows, _K) if negate else values.reshape(rows, _K)


OPERATIONS: Mapping[str, Operation] = {"commit": _commit, "cp": _cp, "mma": _mma}
