"""Bulk copies from global to shared memory, which complete on an mbarrier."""

from collections.abc import Iterator
from dataclasses import dataclass
from functools import partial
from typing import Any, NamedTuple

from nvfp4.emulator import ptx
from nvfp4.emulator.hazards import Hazard, Kind
from nvfp4.emulator.isa.builder import Builder
from nvfp4.emulator.machine.mbarrier import Mbarrier
from nvfp4.emulator.machine.passed import Passed, to_all
from nvfp4.emulator.machine.program import Step
from nvfp4.emulator.machine.shared_addresses import cta_at, mbarrier_at
from nvfp4.emulator.memory.addresses import RANK_SHIFT
from nvfp4.emulator.tma.regions import GlobalOperand, Region, global_operand


def decode_load(
    instruction: ptx.Instruction,
    builder: Builder,
    rank: int,
    multicast: bool,
    hinted: bool,
    group: int,
) -> Step:
    """Make the step of a load of plain bytes (rank 0) or of a box of a tensor.

    `group` 2 lets it signal an mbarrier of the other CTA of a pair (.cta_group::2).
    """
    operands = _operands(instruction, builder, rank, multicast, hinted)

    def step(warp: Any) -> None:
        warp.one_lane()
        destination = _destination(warp, operands, group)
        source = operands.source.region(warp)
        if source.tensor is not None:  # a box beyond the tensor's end reads nothing
            warp.access_global(source.tensor)
        source.check_alignment(destination.offset)
        load = _Load(warp, instruction, source, destination.offset)
        targets = list(_targets(warp, operands.mask, destination, group))
        warp.machine.counts["tma loads"] += 1
        for cta, mbarrier in targets:
            load.start(cta, mbarrier)

    return step


class _Operands(NamedTuple):
    """The slots of a load; `mask` is that of a multicast."""

    destination: tuple[int, int]
    source: GlobalOperand
    mbarrier: tuple[int, int]
    mask: int | None


def _operands(
    instruction: ptx.Instruction, builder: Builder, rank: int, multicast: bool, hinted: bool
) -> _Operands:
    to, source, *rest = instruction.operands
    destination = builder.address(to)
    region = global_operand(builder, source, rank, rest)
    mbarrier = builder.address(rest.pop(0))
    mask = builder.source(rest.pop(0), 16) if multicast else None
    if len(rest) != hinted:
        raise instruction.unsupported(f"{len(rest) - hinted} operands too many")
    return _Operands(destination, region, mbarrier, mask)


class _Destination(NamedTuple):
    """Where a load writes and signals: in the CTA at `rank`, and in those of a multicast."""

    rank: int
    offset: int
    mbarrier_rank: int
    mbarrier_offset: int


def _destination(warp: Any, operands: _Operands, group: int) -> _Destination:
    base, distance = operands.destination
    own, offset = cta_at(warp, warp.uniform(base, "destination") + distance)
    base, distance = operands.mbarrier
    signalled, at = cta_at(warp, warp.uniform(base, "mbarrier") + distance)
    if group == 1 and signalled is not own:
        raise Hazard(Kind.CTA_GROUP, "the mbarrier is in another CTA than the destination")
    if group == 2 and signalled.rank >> 1 != own.rank >> 1:
        raise Hazard(Kind.CTA_GROUP, "the mbarrier is not in the destination's CTA pair")
    return _Destination(own.rank, offset, signalled.rank, at)


def _targets(
    warp: Any, mask: int | None, destination: _Destination, group: int
) -> Iterator[tuple[Any, Mbarrier]]:
    """Give each CTA that gets the bytes, with the mbarrier that its copy signals."""
    ctas = warp.cluster.ctas
    ranks = warp.uniform(mask, "mask") if mask is not None else 1 << destination.rank
    if not ranks or ranks >> len(ctas):
        raise Hazard(Kind.OUT_OF_BOUNDS, f"CTA mask {ranks:#b} in this cluster")
    for cta in ctas:
        if ranks >> cta.rank & 1:
            # ::2 signals the CTA of the pair whose parity is that of the mbarrier's address
            parity = destination.mbarrier_rank & 1
            rank = cta.rank if group == 1 else cta.rank & ~1 | parity
            yield cta, mbarrier_at(warp, rank << RANK_SHIFT | destination.mbarrier_offset)


@dataclass(frozen=True, slots=True)
class _Load:
    """A load that a warp has issued, to one offset in every target's shared memory."""

    warp: Any
    instruction: ptx.Instruction
    source: Region
    offset: int

    def start(self, cta: Any, mbarrier: Mbarrier) -> None:
        """Record the write to a CTA's shared memory, and let the bytes come after a delay."""
        warp, machine = self.warp, self.warp.machine
        end = self.offset + self.source.size
        cta.shared.bound(self.offset, end)
        event = 0
        if machine.options.check:
            event = warp.new_event("TMA load", self.instruction)
            cta.shared.shadow.write(slice(self.offset, end), event, warp.seen, warp.fenced)
        # The bytes come after what the warp had run when it issued the load.
        executed = warp.seen & warp.cluster.events.executed
        passed = to_all(1 << event if event else 0, always=executed)
        arrive = partial(self._arrive, cta, mbarrier, passed)
        machine.after(machine.delay(), warp.placed(self.instruction, arrive))

    def _arrive(self, cta: Any, mbarrier: Mbarrier, passed: Passed) -> None:
        """Move the bytes and complete as many transactions of the mbarrier."""
        if cta.exited:
            raise Hazard(Kind.EXITED, f"a TMA load arrives in CTA {cta.index}, which has exited")
        data = self.source.fetch(self.warp.machine.memory, self.warp)
        cta.shared.write_swizzled(self.offset, data, self.source.swizzle)
        mbarrier.arrive(0, -self.source.size, passed)
