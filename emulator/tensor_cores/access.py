"""Moves between tensor memory and registers (PTX ISA: tcgen05.ld, st, wait, fence)."""

from collections.abc import Mapping
from typing import Any

from nvfp4.emulator import ptx
from nvfp4.emulator.engine.registers import Loading
from nvfp4.emulator.hazards import Hazard, Kind
from nvfp4.emulator.isa.builder import Builder, Operation
from nvfp4.emulator.isa.modifiers import Modifiers
from nvfp4.emulator.machine.program import Step
from nvfp4.emulator.memory.shadow import Access


def _ld(instruction: ptx.Instruction, builder: Builder, modifiers: Modifiers) -> Step:
    """Decode tcgen05.ld of the shapes 32x32b and 16x256b.

    32x32b.xN: thread i of warp w reads N columns of lane 32 * (w % 4) + i.

    16x256b.xN reads 16 lanes and 8 N columns. Of each 8 columns, thread i has columns 2 (i % 4) and
    the next one: first of lane i / 4, then of lane i / 4 + 8. PTX ISA draws it as "tcgen05 matrix
    fragment .16x256b".
    """
    shape = "16x256b" if "16x256b" in instruction.modifiers else "32x32b"
    repeat = _shape(modifiers, shape)
    lanes, columns, count = (
        (32, repeat, repeat) if shape == "32x32b" else (16, 8 * repeat, 4 * repeat)
    )
    values, address = instruction.operands
    items = values.items if isinstance(values, ptx.Vector) else (values,)
    if len(items) != count:
        raise instruction.unsupported(f"{len(items)} registers for {count}")
    slots = tuple(builder.result(item, 32) for item in items)
    awaited = [s for s, item in zip(slots, items, strict=True) if not isinstance(item, ptx.Sink)]
    base, offset = builder.address(address)

    def step(warp: Any) -> int | None:
        if (blocked := warp.converge()) is not None:
            return blocked
        first, where = _columns(warp, base, offset, columns, lanes)
        if warp.machine.options.check:
            event = warp.event(instruction, Access.TENSOR)
            warp.cta.tensor.shadow.read((first // 32, where), event, warp.tensor_seen)
        block = warp.cta.tensor.words[first : first + lanes, where]
        if lanes == 16:
            # [high row, row, group, pair, column] -> a register of each group, row half, column
            parts = block.reshape(2, 8, repeat, 4, 2).transpose(2, 0, 4, 1, 3)
            block = parts.reshape(count, 32)
        else:
            block = block.T
        warp.registers.set_rows(slots, block)
        if warp.machine.tmem_load_waits:
            if warp.machine.tcgen05_fences:
                warp.unwaited["ld"] |= 1 << event
            loading = Loading(instruction.line)
            warp.registers.load(awaited, loading)
            warp.loading.append((loading, awaited))
        return None

    return step


def _st(instruction: ptx.Instruction, builder: Builder, modifiers: Modifiers) -> Step:
    count = _shape(modifiers, "32x32b")
    address, values = instruction.operands
    items = values.items if isinstance(values, ptx.Vector) else (values,)
    if len(items) != count:
        raise instruction.unsupported(f"{len(items)} registers for {count} columns")
    slots = tuple(builder.source(item, 32) for item in items)
    base, offset = builder.address(address)

    def step(warp: Any) -> int | None:
        if (blocked := warp.converge()) is not None:
            return blocked
        first, columns = _columns(warp, base, offset, count, 32)
        if warp.machine.options.check:
            event = warp.event(instruction, Access.TENSOR)
            warp.cta.tensor.shadow.write((first // 32, columns), event, warp.tensor_seen)
            if warp.machine.tcgen05_fences:
                warp.unwaited["st"] |= 1 << event
        lanes = slice(first, first + 32)
        warp.cta.tensor.words[lanes, columns] = warp.registers.rows(slots).T
        return None

    return step


def _shape(modifiers: Modifiers, shape: str) -> int:
    for name in ("sync", "aligned", shape):
        modifiers.need(name)
    count = int(modifiers.need(*(f"x{1 << i}" for i in range(8)))[1:])
    modifiers.need("b32")
    modifiers.done()
    return count


def _columns(warp: Any, base: int, offset: int, count: int, lanes: int) -> tuple[int, slice]:
    """Give the first lane and the columns of an access to `lanes` of the warp's own 32 lanes."""
    address = warp.uniform(base, "address") + offset
    first, own = address >> 16, 32 * (warp.index % 4)
    if first % lanes or not own <= first < own + 32:
        may = f"{lanes} lanes from {own} to {own + 31}"
        raise Hazard(Kind.TMEM, f"warp {warp.index} may access {may}, not lane {first} on")
    return first, warp.cta.tensor.region(address, count)


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
