"""Bulk copies from shared to global memory, which complete in a warp's bulk groups."""

from dataclasses import dataclass
from functools import partial
from typing import Any

from nvfp4.emulator import ptx
from nvfp4.emulator.hazards import Hazard, Kind
from nvfp4.emulator.isa.builder import Builder
from nvfp4.emulator.machine.program import Step
from nvfp4.emulator.machine.shared_addresses import cta_at
from nvfp4.emulator.tma.bulk_groups import Transfer
from nvfp4.emulator.tma.regions import Region, global_operand


def decode_store(instruction: ptx.Instruction, builder: Builder, rank: int, hinted: bool) -> Step:
    """Make the step of a store of plain bytes (rank 0) or of a box of a tensor."""
    target, shared, *rest = instruction.operands
    operand = global_operand(builder, target, rank, rest)
    base, distance = builder.address(shared)
    if len(rest) != hinted:
        raise instruction.unsupported(f"{len(rest) - hinted} operands too many")

    def step(warp: Any) -> None:
        if warp.machine.options.one_lane_stores:
            warp.one_lane()
        warp.access_global()
        cta, offset = cta_at(warp, warp.uniform(base, "source") + distance)
        if cta is not warp.cta:
            raise Hazard(Kind.OUT_OF_BOUNDS, "a bulk store from another CTA's shared memory")
        region = operand.region(warp)
        region.check_alignment(offset)
        cta.shared.bound(offset, offset + region.size)
        warp.machine.counts["tma stores"] += 1
        _Store(warp, instruction, region, offset).start()

    return step


@dataclass(frozen=True, slots=True)
class _Store:
    """A store that a warp has issued, from an offset in its CTA's shared memory."""

    warp: Any
    instruction: ptx.Instruction
    target: Region
    offset: int

    def start(self) -> None:
        """Record the read of shared memory, and let it happen after a delay."""
        warp, machine = self.warp, self.warp.machine
        transfer = Transfer(warp.new_event("TMA store", self.instruction))
        if machine.options.check:
            region = slice(self.offset, self.offset + self.target.size)
            warp.cta.shared.shadow.read(region, transfer.event, warp.seen, warp.fenced)
        warp.bulk.append(transfer)
        move = partial(self._move, transfer)
        machine.after(machine.delay(), warp.placed(self.instruction, move))

    def _move(self, transfer: Transfer) -> None:
        """Read shared memory and write global memory at once."""
        shared, target = self.warp.cta.shared, self.target
        data = shared.read_swizzled(self.offset, target.size, target.swizzle)
        transfer.read = True
        self.warp.wake()
        target.put(self.warp.machine.memory, data, self.warp, transfer.event)
