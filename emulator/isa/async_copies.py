"""Asynchronous copies of 4 to 16 bytes a thread, from global to shared memory (PTX ISA: cp.async).

The copies of a warp between two commits are one event. From its issue on, a copy counts as the
writer of its destination, so nothing may read or overwrite these bytes before a wait for it. The
bytes come after a random delay. Copies belong to the generic proxy: the async proxy reads them only
behind fence.proxy.async.

Groups are kept for a warp, not for each thread: a wait is for the copies of all its lanes.
"""

from collections.abc import Callable
from dataclasses import dataclass, field
from functools import partial, reduce
from operator import or_
from typing import Any

import numpy as np

from nvfp4.emulator import ptx
from nvfp4.emulator.hazards import Hazard, Kind
from nvfp4.emulator.isa.accesses import check_alignment
from nvfp4.emulator.isa.builder import Builder
from nvfp4.emulator.isa.modifiers import Modifiers
from nvfp4.emulator.lanes import flags, members, spread
from nvfp4.emulator.machine.outcomes import BLOCKED
from nvfp4.emulator.machine.passed import to_all
from nvfp4.emulator.machine.program import Step
from nvfp4.emulator.machine.shared_addresses import cta_at, mbarrier_at
from nvfp4.emulator.memory.addresses import OFFSET_MASK, RANK_SHIFT
from nvfp4.emulator.memory.shared_memory import CHUNK


@dataclass
class _Group:
    """Copies that are waited for together; `flying` of them have not brought their bytes."""

    events: int = 0
    open: int = 0
    """The event of the copies that are issued now; an arrival at an mbarrier ends it."""
    flying: int = 0
    arrivals: list[Callable[[], None]] = field(default_factory=list)
    """What is to happen when no copy of this group and of earlier ones is in flight."""


class _Copies:
    """The groups of a warp, oldest first; the last one is not committed yet."""

    def __init__(self) -> None:
        self.groups = [_Group()]

    def landed(self, group: _Group) -> None:
        """Count the end of a copy, and make the arrivals for which it was the last."""
        group.flying -= 1
        self.check()

    def check(self) -> None:
        for group in self.groups:
            if group.flying:
                return
            arrivals, group.arrivals = group.arrivals, []
            for arrive in arrivals:
                arrive()

    def events(self) -> int:
        """Give the events of all copies so far, and let later ones belong to others."""
        self.groups[-1].open = 0
        return reduce(or_, (group.events for group in self.groups))


_KEY = "cp.async"


def _copies(warp: Any) -> _Copies:
    copies: _Copies = warp.state.setdefault(_KEY, _Copies())
    return copies


def decode(instruction: ptx.Instruction, builder: Builder, modifiers: Modifiers) -> Step:
    """Decode cp.async and its groups, after the modifier .async."""
    if modifiers.take("commit_group"):
        modifiers.done()
        return _commit
    if modifiers.take("wait_group"):
        modifiers.done()
        (count,) = instruction.operands
        if not isinstance(count, ptx.Immediate):
            raise instruction.unsupported("only with a constant")
        return partial(_wait, int(count.value))
    if modifiers.take("wait_all"):
        modifiers.done()
        return _wait_all
    if modifiers.take("mbarrier"):
        return _decode_arrive(instruction, builder, modifiers)
    return _decode_copy(instruction, builder, modifiers)


def _commit(warp: Any) -> None:
    _copies(warp).groups.append(_Group())


def _wait(keep: int, warp: Any) -> int | None:
    """Wait for all groups but the `keep` youngest that are committed."""
    groups = _copies(warp).groups
    done = groups[: max(len(groups) - 1 - keep, 0)]
    if any(group.flying for group in done):
        return BLOCKED
    for group in done:
        warp.seen |= group.events
    del groups[: len(done)]
    return None


def _wait_all(warp: Any) -> int | None:
    if _copies(warp).groups[-1].events:
        _commit(warp)
    return _wait(0, warp)


def _decode_copy(instruction: ptx.Instruction, builder: Builder, modifiers: Modifiers) -> Step:
    level = modifiers.need("ca", "cg")
    modifiers.need("shared", "shared::cta")
    modifiers.need("global")
    hinted = bool(modifiers.take("L2::cache_hint"))
    modifiers.take("L2::64B", "L2::128B", "L2::256B")
    modifiers.done()
    to, source, width, *rest = instruction.operands
    if not isinstance(width, ptx.Immediate) or width.value not in (
        (16,) if level == "cg" else (4, 8, 16)
    ):
        raise instruction.unsupported("a copy of 4 (.ca), 8 (.ca) or 16 bytes")
    size = int(width.value)
    to_base, to_offset = builder.address(to)
    from_base, from_offset = builder.address(source, 64)
    size_slot, ignored = None, None
    if len(rest) > hinted:
        operand = rest.pop(0)
        register = operand.register if isinstance(operand, ptx.Not) else operand
        if isinstance(register, ptx.Register) and register.bits == 1:
            ignored = builder.predicate(operand)
        else:
            size_slot = builder.source(operand, 32)
    if len(rest) != hinted:
        raise ValueError(f"{len(rest)} operands behind the sizes")

    def step(warp: Any) -> None:
        registers, lanes = warp.registers, members(warp.mask)
        warp.access_global()
        offsets = spread(registers[to_base], 64)[lanes].astype(np.int64) + to_offset
        addresses = spread(registers[from_base], 64)[lanes].astype(np.int64) + from_offset
        check_alignment(offsets, size)
        sizes = np.full(len(lanes), size)
        if size_slot is not None:
            sizes = spread(registers[size_slot], 32)[lanes].astype(np.int64)
        if ignored is not None:
            slot, flip = ignored
            sizes[flags(registers[slot] ^ flip)[lanes]] = 0
        counts = set(sizes.tolist())
        if max(counts) > size:
            raise Hazard(Kind.OUT_OF_BOUNDS, f"a src-size of {max(counts)} of {size} bytes")
        load = warp.machine.memory.load
        if counts == {size}:
            check_alignment(addresses, size)
            _start(warp, instruction, offsets, load(addresses, 32, size // 4, warp))
            return
        data = np.zeros((len(lanes), size), np.uint8)  # bytes beyond the source size are zero
        for count in sorted(counts - {0}):
            chosen = np.flatnonzero(sizes == count)
            check_alignment(addresses[chosen], size)
            data[chosen, :count] = load(addresses[chosen], 8, count, warp)
        _start(warp, instruction, offsets, data.view(np.uint32))

    return step


def _start(warp: Any, instruction: ptx.Instruction, offsets: np.ndarray, data: np.ndarray) -> None:
    """Record the writes of [lanes, words] to shared memory; the bytes come after a delay."""
    copies, machine = _copies(warp), warp.machine
    cta = warp.cta
    low, high, size = int(offsets.min()), int(offsets.max()), 4 * data.shape[1]
    if {low >> RANK_SHIFT, high >> RANK_SHIFT} != {cta.rank}:
        raise Hazard(Kind.OUT_OF_BOUNDS, "cp.async to another CTA's shared memory")
    offsets = offsets & OFFSET_MASK
    cta.shared.bound(low & OFFSET_MASK, (high & OFFSET_MASK) + size)
    group = copies.groups[-1]
    if not group.open:
        group.open = warp.new_event("cp.async from here on", instruction)
        warp.cluster.events.generic |= 1 << group.open
        group.events |= 1 << group.open
    if machine.options.check:
        # copies of one group are in no order, so no two of them may have a destination in common
        if size == CHUNK:
            cta.shared.chunk_shadow.write(offsets // CHUNK, group.open, warp.seen)
        else:
            cells = offsets[:, None] + np.arange(size)
            cta.shared.shadow.write(cells, group.open, warp.seen)

    def land() -> None:
        cta.shared.bytes.scatter(offsets, data)
        copies.landed(group)
        warp.wake()

    group.flying += 1
    machine.after(machine.delay(), land)


def _decode_arrive(instruction: ptx.Instruction, builder: Builder, modifiers: Modifiers) -> Step:
    """Decode cp.async.mbarrier.arrive: each lane arrives when its earlier copies have landed.

    Without .noinc, the phase's pending count grows by this arrival first.
    """
    modifiers.need("arrive")
    counted = bool(modifiers.take("noinc"))
    modifiers.take("shared", "shared::cta")
    modifiers.need("b64")
    modifiers.done()
    base, offset = builder.address(instruction.operands[0])

    def step(warp: Any) -> None:
        barrier = mbarrier_at(warp, warp.uniform(base, "mbarrier") + offset)
        cta, _ = cta_at(warp, warp.uniform(base, "mbarrier") + offset)
        if cta is not warp.cta:
            raise Hazard(Kind.OUT_OF_BOUNDS, "an arrival at another CTA's mbarrier")
        lanes = warp.mask.bit_count()
        if not counted:
            barrier.pending += lanes
        copies = _copies(warp)
        # it releases the copies only, not what the warp itself has done
        arrive = partial(barrier.arrive, lanes, 0, to_all(copies.events()))
        copies.groups[-1].arrivals.append(warp.placed(instruction, arrive))
        copies.check()

    return step
