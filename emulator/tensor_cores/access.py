"""Moves between tensor memory and registers (PTX ISA: tcgen05.ld, st, wait, fence)."""

from collections.abc import Mapping
from typing import Any, NamedTuple

import numpy as np

from nvfp4.emulator import ptx
from nvfp4.emulator.engine.registers import Loading
from nvfp4.emulator.hazards import Hazard, Kind
from nvfp4.emulator.isa.builder import Builder, Operation
from nvfp4.emulator.isa.modifiers import Modifiers
from nvfp4.emulator.machine.program import Step
from nvfp4.emulator.memory.shadow import Access


class _Shape(NamedTuple):
    """What a warp accesses: lanes, columns, and the second place of 16x32bx2 (0 elsewhere).

    32x32b.xN: thread i of warp w has N columns of lane 32 * (w % 4) + i.

    16x256b.xN has 16 lanes and 8 N columns. Of each 8 columns, thread i has columns 2 (i % 4) and
    the next one: first of lane i / 4, then of lane i / 4 + 8. PTX ISA draws it as "tcgen05 matrix
    fragment .16x256b".

    16x32bx2.xN: thread i and thread 16 + i have N columns of lane i of 16, the latter from a second
    address on, which is `split` further.
    """

    lanes: int
    columns: int
    registers: int
    split: int = 0

    def registers_of(self, words: np.ndarray) -> np.ndarray:
        """Give the [registers, 32] values of [lanes, columns] words; [2, 16, columns] of two."""
        if self.split:
            return words.reshape(32, self.columns).T.copy()
        if self.lanes == 16:
            # [high row, row, group, pair, column] -> a register of each group, row half, column
            parts = words.reshape(2, 8, self.columns // 8, 4, 2).transpose(2, 0, 4, 1, 3)
            return parts.reshape(self.registers, 32)
        return words.T.copy()


def _shape(instruction: ptx.Instruction, modifiers: Modifiers, split: ptx.Operand | None) -> _Shape:
    modifiers.need("sync")
    modifiers.need("aligned")
    shape = modifiers.need("32x32b", "16x256b", "16x32bx2")
    repeat = int(modifiers.need(*(f"x{1 << i}" for i in range(8)))[1:])
    modifiers.need("b32")
    modifiers.done()
    if (shape == "16x32bx2") != isinstance(split, ptx.Immediate):
        raise instruction.unsupported("a constant is the second place of .16x32bx2, and of it only")
    if isinstance(split, ptx.Immediate):
        return _Shape(16, repeat, repeat, int(split.value))
    return _Shape(32, repeat, repeat) if shape == "32x32b" else _Shape(16, 8 * repeat, 4 * repeat)


def _items(instruction: ptx.Instruction, values: ptx.Operand, shape: _Shape) -> list[ptx.Operand]:
    items = values.items if isinstance(values, ptx.Vector) else (values,)
    if len(items) != shape.registers:
        raise instruction.unsupported(f"{len(items)} registers for {shape.registers}")
    return list(items)


def _ld(instruction: ptx.Instruction, builder: Builder, modifiers: Modifiers) -> Step:
    values, address, *split = instruction.operands
    shape = _shape(instruction, modifiers, split[0] if split else None)
    items = _items(instruction, values, shape)
    slots = tuple(builder.result(item, 32) for item in items)
    awaited = [s for s, item in zip(slots, items, strict=True) if not isinstance(item, ptx.Sink)]
    base, offset = builder.address(address)

    def step(warp: Any) -> int | None:
        if (blocked := warp.converge()) is not None:
            return blocked
        places = _places(warp, base, offset, shape)
        if warp.machine.options.check:
            event = warp.event(instruction, Access.TENSOR)
            for lanes, where in places:
                warp.cta.tensor.shadow.read((lanes.start // 32, where), event, warp.tensor_seen)
        parts = [warp.cta.tensor.words[place] for place in places]
        warp.registers.set_rows(
            slots, shape.registers_of(np.stack(parts) if shape.split else parts[0])
        )
        if warp.machine.tmem_load_waits:
            if warp.machine.tcgen05_fences:
                warp.unwaited["ld"] |= 1 << event
            loading = Loading(instruction.line)
            warp.registers.load(awaited, loading)
            warp.loading.append((loading, awaited))
        return None

    return step


def _st(instruction: ptx.Instruction, builder: Builder, modifiers: Modifiers) -> Step:
    address, *split, values = instruction.operands
    shape = _shape(instruction, modifiers, split[0] if split else None)
    if shape.columns != shape.registers:
        raise instruction.unsupported("only of the shapes 32x32b and 16x32bx2")
    slots = tuple(builder.source(item, 32) for item in _items(instruction, values, shape))
    base, offset = builder.address(address)

    def step(warp: Any) -> int | None:
        if (blocked := warp.converge()) is not None:
            return blocked
        places = _places(warp, base, offset, shape)
        if warp.machine.options.check:
            event = warp.event(instruction, Access.TENSOR)
            for lanes, where in places:
                warp.cta.tensor.shadow.write((lanes.start // 32, where), event, warp.tensor_seen)
            if warp.machine.tcgen05_fences:
                warp.unwaited["st"] |= 1 << event
        block = warp.registers.rows(slots).T
        for place, part in zip(places, np.split(block, len(places)), strict=True):
            warp.cta.tensor.words[place] = part
        return None

    return step


def _places(warp: Any, base: int, offset: int, shape: _Shape) -> list[tuple[slice, slice]]:
    """Give the lanes and columns of an access, which must be among the warp's own 32 lanes."""
    address = warp.uniform(base, "address") + offset
    own, places = 32 * (warp.index % 4), []
    for at in (address, address + shape.split) if shape.split else (address,):
        first = at >> 16
        if first % shape.lanes or not own <= first < own + 32:
            may = f"{shape.lanes} lanes from {own} to {own + 31}"
            raise Hazard(Kind.TMEM, f"warp {warp.index} may access {may}, not lane {first} on")
        columns = warp.cta.tensor.region(at, shape.columns)
        places.append((slice(first, first + shape.lanes), columns))
    return places


def _wait(instruction: ptx.Instruction, builder: Builder, modifiers: Modifiers) -> Step:
    """Decode wait::ld, which gives registers their values, and wait::st.

    What a warp has waited for, tcgen05.fence can order before a barrier.
    """
    modifiers.need("sync")
    modifiers.need("aligned")
    modifiers.done()
    kind = instruction.modifiers[0].removeprefix("wait::")

    def step(warp: Any) -> int | None:
        if (blocked := warp.converge()) is not None:
            return blocked
        if warp.unwaited[kind]:
            warp.unwaited[kind] = warp.spans[Access.TENSOR] = 0
        if kind == "ld" and warp.loading:
            for loading, slots in warp.loading:
                warp.registers.loaded(loading, slots)
            warp.loading = []
        return None

    return step


def _fence(instruction: ptx.Instruction, builder: Builder, modifiers: Modifiers) -> Step:
    """Decode tcgen05.fence, which orders accesses to tensor memory around barriers."""
    modifiers.done()
    before = instruction.modifiers[0] == "fence::before_thread_sync"

    def step(warp: Any) -> None:
        if before:
            warp.fence_tensor_before()
        else:
            warp.fence_tensor_after()

    return step


OPERATIONS: Mapping[str, Operation] = {
    "ld": _ld,
    "st": _st,
    "wait::ld": _wait,
    "wait::st": _wait,
    "fence::before_thread_sync": _fence,
    "fence::after_thread_sync": _fence,
}
