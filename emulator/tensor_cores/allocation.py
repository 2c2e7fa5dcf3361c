"""Allocation of tensor memory (PTX ISA: tcgen05.alloc, dealloc, relinquish_alloc_permit)."""

from collections.abc import Mapping
from typing import Any

import numpy as np

from nvfp4.emulator import ptx
from nvfp4.emulator.hazards import Hazard, Kind
from nvfp4.emulator.isa.builder import Builder, Operation
from nvfp4.emulator.isa.modifiers import Modifiers
from nvfp4.emulator.lanes import pick
from nvfp4.emulator.machine.outcomes import BLOCKED
from nvfp4.emulator.machine.program import Step
from nvfp4.emulator.machine.shared_addresses import cta_at
from nvfp4.emulator.tensor_cores.cta_groups import group_of, pair_of, same_group


def _alloc(instruction: ptx.Instruction, builder: Builder, modifiers: Modifiers) -> Step:
    group = group_of(modifiers)
    for name in ("sync", "aligned", "shared::cta", "b32"):
        modifiers.need(name)
    modifiers.done()
    base, offset = builder.address(instruction.operands[0])
    count = builder.source(instruction.operands[1], 32)
    key = object()

    def step(warp: Any) -> int | None:
        if (blocked := warp.converge()) is not None:
            return blocked
        memories = [cta.tensor for cta in pair_of(warp, group)]
        memory = warp.cta.tensor
        number = warp.state.get(key)
        if number is None:
            columns = pick(warp.registers[count], warp.mask)
            number = warp.state[key] = memory.request(columns)
        if number not in memory.granted and not _grant(memories, number):
            memory.waiting.append(warp)
            return BLOCKED
        first = memory.granted[number]
        del warp.state[key]
        address = pick(warp.registers[base], warp.mask) + offset
        cta, at = cta_at(warp, address)
        if at % 4:
            raise Hazard(Kind.MISALIGNED, f"shared address {address:#x}")
        cta.shared.bound(at, at + 4)
        if warp.machine.options.check:
            cta.shared.shadow.write(slice(at, at + 4), warp.event(instruction), warp.seen)
        cta.shared.bytes.scatter(np.array([at]), np.array([[first]], np.uint32))
        return None

    return step


def _grant(memories: list[Any], number: int) -> bool:
    """Grant one request to all these CTAs at once, or to none."""
    if any(number >= len(memory.requests) for memory in memories):
        return False
    columns = memories[0].requests[number]
    if any(memory.requests[number] != columns for memory in memories):
        raise Hazard(Kind.TMEM, "the CTAs of a pair allocate different numbers of columns")
    rooms = [memory.room(columns) for memory in memories]
    if None in rooms:
        return False
    for memory, first in zip(memories, rooms, strict=True):
        memory.allocations[first] = columns
        memory.granted[number] = first
        memory.wake()
    return True


def _dealloc(instruction: ptx.Instruction, builder: Builder, modifiers: Modifiers) -> Step:
    group = group_of(modifiers)
    for name in ("sync", "aligned", "b32"):
        modifiers.need(name)
    modifiers.done()
    address, count = (builder.source(operand, 32) for operand in instruction.operands)

    def step(warp: Any) -> int | None:
        if (blocked := warp.converge()) is not None:
            return blocked
        same_group(warp, group)  # the peer may have freed its own and exited
        at = pick(warp.registers[address], warp.mask)
        warp.cta.tensor.free(at, pick(warp.registers[count], warp.mask), warp.tensor_seen)
        return None

    return step


def _relinquish(instruction: ptx.Instruction, builder: Builder, modifiers: Modifiers) -> Step:
    group = group_of(modifiers)
    for name in ("sync", "aligned"):
        modifiers.need(name)
    modifiers.done()

    def step(warp: Any) -> int | None:
        if (blocked := warp.converge()) is not None:
            return blocked
        same_group(warp, group)
        warp.cta.tensor.relinquished = True
        return None

    return step


OPERATIONS: Mapping[str, Operation] = {
    "alloc": _alloc,
    "dealloc": _dealloc,
    "relinquish_alloc_permit": _relinquish,
}
