"""Copies from shared to tensor memory (PTX ISA: tcgen05.cp)."""

from collections.abc import Mapping
from typing import Any

import numpy as np

from nvfp4.emulator import ptx
from nvfp4.emulator.hazards import Hazard, Kind
from nvfp4.emulator.isa.builder import Builder, Operation
from nvfp4.emulator.isa.modifiers import Modifiers
from nvfp4.emulator.lanes import pick
from nvfp4.emulator.machine.program import Step
from nvfp4.emulator.machine.tensor_pipe import issue_event
from nvfp4.emulator.tensor_cores.cta_groups import group_of, pair_of
from nvfp4.emulator.tensor_cores.descriptors import chunks, matrix_descriptor

_ALL_QUARTERS = slice(None)


def _cp(instruction: ptx.Instruction, builder: Builder, modifiers: Modifiers) -> Step:
    """Decode 32x128b.warpx4: row r of 16 bytes goes to lanes r, r + 32, r + 64 and r + 96."""
    group = group_of(modifiers)
    modifiers.need("32x128b")
    modifiers.need("warpx4")
    modifiers.done()
    to, to_offset = builder.address(instruction.operands[0])
    source = builder.source(instruction.operands[1], 64)

    def step(warp: Any) -> None:
        machine, registers = warp.machine, warp.registers
        event, seen = issue_event(warp, instruction, "cp")
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


OPERATIONS: Mapping[str, Operation] = {"cp": _cp}
