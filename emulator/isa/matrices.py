"""The ldmatrix and stmatrix instructions, by which a warp moves 8x8 matrices of 16-bit elements.

Lane l of a fragment holds elements 2 (l % 4) and the next one of row l / 4 of each matrix. Lane
8 i + r gives the shared address of row r of matrix i. With .trans, the fragment is that of the
transposed matrix.
"""

from collections.abc import Mapping
from typing import Any

import numpy as np

from nvfp4.emulator import ptx
from nvfp4.emulator.engine.records import Does, Record
from nvfp4.emulator.engine.registers import ALWAYS
from nvfp4.emulator.isa.accesses import load, memory_shape, store
from nvfp4.emulator.isa.builder import Builder, Decoder, Lanes
from nvfp4.emulator.isa.modifiers import Modifiers
from nvfp4.emulator.lanes import spread
from nvfp4.emulator.machine.program import Step


def _shape(instruction: ptx.Instruction) -> tuple[int, bool]:
    """Give the number of matrices, and whether they are transposed."""
    modifiers = Modifiers(instruction, "sync", "aligned", "m8n8")
    count = int(modifiers.need("x1", "x2", "x4")[1:])
    transposed = bool(modifiers.take("trans"))
    modifiers.need("shared", "shared::cta")
    modifiers.need("b16")
    modifiers.done()
    return count, transposed


def _items(instruction: ptx.Instruction, data: ptx.Operand, count: int) -> tuple[ptx.Operand, ...]:
    items = data.items if isinstance(data, ptx.Vector) else (data,)
    if len(items) != count:
        raise instruction.unsupported(f"{len(items)} registers for {count} matrices")
    return items


def _decode_ldmatrix(instruction: ptx.Instruction, builder: Builder) -> Lanes:
    count, transposed = _shape(instruction)
    data, address = instruction.operands
    slots = tuple(builder.result(item, 32) for item in _items(instruction, data, count))
    base, offset = builder.address(address)

    def step(warp: Any) -> int | None:
        if (blocked := warp.converge()) is not None:
            return blocked
        addresses = spread(warp.registers[base], 64).astype(np.int64)[: 8 * count] + offset
        matrices = load(warp, "shared", addresses, 16, 8, instruction).reshape(count, 8, 8)
        if transposed:
            matrices = np.ascontiguousarray(matrices.transpose(0, 2, 1))
        warp.registers.set_rows(slots, matrices.reshape(count, 64).view(np.uint32))
        return None

    return _lanes(Does.LOAD_MATRIX, builder, (base, offset), slots, transposed, step)


def _decode_stmatrix(instruction: ptx.Instruction, builder: Builder) -> Lanes:
    count, transposed = _shape(instruction)
    address, data = instruction.operands
    slots = tuple(builder.source(item, 32) for item in _items(instruction, data, count))
    base, offset = builder.address(address)

    def step(warp: Any) -> int | None:
        if (blocked := warp.converge()) is not None:
            return blocked
        addresses = spread(warp.registers[base], 64).astype(np.int64)[: 8 * count] + offset
        words = warp.registers.rows(slots)  # [matrix, lane]
        rows = words.view(np.uint16).reshape(count, 8, 8)
        if transposed:
            rows = np.ascontiguousarray(rows.transpose(0, 2, 1))
        store(warp, "shared", addresses, rows.reshape(8 * count, 8), instruction)
        return None

    return _lanes(Does.STORE_MATRIX, builder, (base, offset), slots, transposed, step)


def _lanes(
    does: Does,
    builder: Builder,
    address: tuple[int, int],
    slots: tuple[int, ...],
    transposed: bool,
    step: Step,
) -> Lanes:
    """Let the engine run it, and leave what it does not know to be right to this step."""
    base, offset = address
    shape = memory_shape(16, len(slots), builder.bits[base], transposed)
    record = Record(does, 0, ALWAYS, (base,), offset, flips=(shape, 0), elements=slots)
    return Lanes([record], step)


DECODERS: Mapping[str, Decoder] = {"ldmatrix": _decode_ldmatrix, "stmatrix": _decode_stmatrix}
