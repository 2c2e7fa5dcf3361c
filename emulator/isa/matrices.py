"""The stmatrix instruction: a warp stores 8x8 matrices of 16-bit elements (PTX ISA)."""

from collections.abc import Mapping
from typing import Any

import numpy as np

from nvfp4.emulator import ptx
from nvfp4.emulator.isa.accesses import store
from nvfp4.emulator.isa.builder import Builder, Decoder
from nvfp4.emulator.isa.modifiers import Modifiers
from nvfp4.emulator.lanes import spread
from nvfp4.emulator.machine.program import Step


def _decode_stmatrix(instruction: ptx.Instruction, builder: Builder) -> Step:
    """Decode stmatrix.

    Lane l holds elements 2 (l % 4) and the next one of row l / 4 of each matrix. Row r of matrix i
    is stored at the address that lane 8 i + r gives.
    """
    modifiers = Modifiers(instruction, "sync", "aligned", "m8n8")
    count = int(modifiers.need("x1", "x2", "x4")[1:])
    modifiers.need("shared", "shared::cta")
    modifiers.need("b16")
    modifiers.done()
    address, data = instruction.operands
    items = data.items if isinstance(data, ptx.Vector) else (data,)
    if len(items) != count:
        raise instruction.unsupported(f"{len(items)} registers for {count} matrices")
    slots = [builder.source(item, 32) for item in items]
    base, offset = builder.address(address)

    def step(warp: Any) -> int | None:
        if (blocked := warp.converge()) is not None:
            return blocked
        addresses = spread(warp.registers[base], 64).astype(np.int64)[: 8 * count] + offset
        words = np.stack([spread(warp.registers[slot], 32) for slot in slots])  # [matrix, lane]
        store(warp, "shared", addresses, words.reshape(8 * count, 4), instruction)
        return None

    return step


DECODERS: Mapping[str, Decoder] = {"stmatrix": _decode_stmatrix}
