"""Block-scaled MMAs (PTX ISA: tcgen05.mma).

An MMA is computed exactly and rounded to float32 once, when it is added to the accumulator. The
order of summation within one instruction is not documented for hardware.
"""

from collections.abc import Mapping
from typing import Any

import numpy as np

from nvfp4.emulator import ptx
from nvfp4.emulator.engine.library import scaled_mma
from nvfp4.emulator.hazards import Hazard, Kind
from nvfp4.emulator.isa.builder import Builder, Operation
from nvfp4.emulator.isa.modifiers import Modifiers
from nvfp4.emulator.lanes import pick
from nvfp4.emulator.machine.program import Step
from nvfp4.emulator.machine.tensor_pipe import issue_event
from nvfp4.emulator.tensor_cores.cta_groups import group_of, pair_of
from nvfp4.emulator.tensor_cores.descriptors import (
    InstructionDescriptor,
    chunks,
    instruction_descriptor,
    matrix_descriptor,
)
from nvfp4.emulator.tensor_cores.elements import UE4M3, UE8M0

_ALL_QUARTERS = slice(None)


def _mma(instruction: ptx.Instruction, builder: Builder, modifiers: Modifiers) -> Step:
    group = group_of(modifiers)
    modifiers.need("kind::mxf4nvf4")
    modifiers.need("block_scale")
    modifiers.need("block16", "scale_vec::4X")
    modifiers.take(*(f"collector::a::{use}" for use in ("discard", "fill", "use", "lastuse")))
    modifiers.done()
    d, a, b, description, scale_a, scale_b, enable = instruction.operands
    d_base, d_offset = builder.address(d)
    a_slot, b_slot = builder.source(a, 64), builder.source(b, 64)
    description_slot = builder.source(description, 32)
    (sa_base, sa_offset), (sb_base, sb_offset) = builder.address(scale_a), builder.address(scale_b)
    accumulate_slot, flip = builder.predicate(enable)

    def step(warp: Any) -> None:
        machine, registers, mask = warp.machine, warp.registers, warp.mask
        ctas = pair_of(warp, group)
        shape = instruction_descriptor(pick(registers[description_slot], mask))
        to = pick(registers[d_base], mask) + d_offset
        event, seen = issue_event(warp, instruction, "mma", (to, shape))
        _check_shape(shape, group)
        rows_b = shape.n // group
        a_rows = chunks(matrix_descriptor(pick(registers[a_slot], mask)), 128, 2)
        b_rows = chunks(matrix_descriptor(pick(registers[b_slot], mask)), rows_b, 2)
        accumulate = bool((registers[accumulate_slot] ^ flip) & mask)
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
                table = UE8M0 if shape.scale_is_e8m0 else UE4M3
                factors_a = _scales(words, scales_a, 128, table)
                factors_b = _scales(words, scales_b, shape.n, table)
                codes_a = cta.shared.bytes.chunks[a_rows]
                sign = -1 if shape.negate_a != shape.negate_b else 1
                scaled_mma(codes_a, factors_a, codes_b, factors_b, sign, accumulate, words[:, into])

        warp.cta.pipe.issue(warp, instruction, work)

    return step


def _check_shape(shape: InstructionDescriptor, group: int) -> None:
    if shape.m != 128 * group or not shape.n or shape.n > 256 or shape.n % (8 * group):
        raise Hazard(
            Kind.DESCRIPTOR, f"no {shape.m} x {shape.n} block-scaled MMA in cta_group::{group}"
        )


def _check_scale_column(operand: str, column: int) -> None:
    """Refuse scale factors of 16 elements that begin at an odd column.

    PTX ISA does not say so. NVIDIA's and other public kernels move these scales by two columns (64
    rows), even for an N of 32. One of them reports that odd columns cannot be reached.
    """
    if column % 2:
        raise Hazard(
            Kind.TMEM,
            f"{operand}'s scale factors begin at column {column}: hardware addresses scales of 16"
            " elements in pairs of columns (64 rows), so they need an even one",
        )


def _scales(words: np.ndarray, columns: slice, rows: int, table: np.ndarray) -> np.ndarray:
    """Read [rows, 4] scale factors; row r has the bytes of lane r % 32, column r // 32."""
    quarters = words[:, columns].reshape(4, 32, -1)
    if not (quarters == quarters[0]).all():
        raise Hazard(Kind.TMEM, "scale factors differ between the 32-lane quarters")
    codes = np.ascontiguousarray(quarters[0].T).reshape(-1).view(np.uint8)
    return table[codes[: 4 * rows]].reshape(rows, 4)


OPERATIONS: Mapping[str, Operation] = {"mma": _mma}
