"""The TMA unit: cp.async.bulk (PTX ISA: Data Movement, Asynchronous Copy).

A transfer is an event from its issue on: what it will write counts as written by it at once, and
what it will read as being read, so that a program that does not wait is found out however early the
bytes come. They come after a random delay, transfers in any order.
"""

from collections.abc import Callable, Mapping
from typing import Any

import numpy as np

from nvfp4.emulator import ptx
from nvfp4.emulator.hazards import Event, Hazard, Kind
from nvfp4.emulator.isa.accesses import cta_at
from nvfp4.emulator.isa.mbarriers import mbarrier_at
from nvfp4.emulator.isa.program import BLOCKED, Decoder, Modifiers, Program, Step
from nvfp4.emulator.lanes import uniform
from nvfp4.emulator.memory.global_memory import RANK_SHIFT
from nvfp4.emulator.tma import tensor_map
from nvfp4.emulator.tma.boxes import Box, map_at


def _decode_cp(instruction: ptx.Instruction, program: Program) -> Step:
    modifiers = Modifiers(instruction, "async")
    if not modifiers.take("bulk"):
        raise instruction.unsupported("cp.async of less than bulk is not known")
    if modifiers.take("commit_group"):
        modifiers.done()
        return _commit_group
    if modifiers.take("wait_group"):
        return _wait_group(instruction, program, modifiers)
    if modifiers.take("prefetch"):
        return _prefetch(instruction, program, modifiers)
    rank = int(modifiers.need("1d", "2d", "3d", "4d", "5d")[0]) if modifiers.take("tensor") else 0
    # the destination's state space comes first, then the source's
    spaces = [m for m in instruction.modifiers if m.split("::")[0] in ("shared", "global")]
    for space in spaces:
        modifiers.need(space)
    if rank:
        modifiers.take("tile")
    completion = modifiers.need("mbarrier::complete_tx::bytes", "bulk_group")
    multicast = bool(modifiers.take("multicast::cluster"))
    hinted = bool(modifiers.take("L2::cache_hint"))
    group = int((modifiers.take("cta_group::1", "cta_group::2") or " 1")[-1])
    modifiers.done()
    pair = (spaces[0].split("::")[0], spaces[1].split("::")[0])
    if pair == ("shared", "global") and completion != "bulk_group":
        return _load(instruction, program, rank, multicast, hinted, group)
    if pair == ("global", "shared") and completion == "bulk_group" and not multicast:
        return _store(instruction, program, rank, hinted)
    raise instruction.unsupported("this direction and completion are not known")


def _one(warp: Any, slot: int, what: str) -> int:
    """A source of an instruction that acts for the warp, not for each lane."""
    value = uniform(warp.registers[slot], warp.mask)
    if value is None:
        raise Hazard(Kind.MANY_LANES, f"the lanes differ in the {what}")
    return value


def _load(
    instruction: ptx.Instruction,
    program: Program,
    rank: int,
    multicast: bool,
    hinted: bool,
    group: int,
) -> Step:
    operands = list(instruction.operands)
    to, to_offset = program.address(operands.pop(0))
    source = operands.pop(0)
    at, at_offset = program.address(source, 64)
    coordinates = []
    size = 0
    if rank:
        assert isinstance(source, ptx.Address) and source.coordinates is not None
        coordinates = [program.source(c, 32) for c in source.coordinates.items]
    else:
        size = program.source(operands.pop(0), 32)
    signal, signal_offset = program.address(operands.pop(0))
    mask = program.source(operands.pop(0), 16) if multicast else None
    if len(operands) != hinted:
        raise instruction.unsupported(f"{len(operands) - hinted} operands too many")

    def step(warp: Any) -> None:
        _single(warp, instruction)
        warp.access_global()
        destination = _one(warp, to, "destination") + to_offset
        barrier_at = _one(warp, signal, "mbarrier") + signal_offset
        own, offset = cta_at(warp, destination)
        signal_cta, signal_at = cta_at(warp, barrier_at)
        if group == 1 and signal_cta is not own:
            raise Hazard(Kind.CTA_GROUP, "the mbarrier is in another CTA than the destination")
        if group == 2 and signal_cta.rank >> 1 != own.rank >> 1:
            raise Hazard(Kind.CTA_GROUP, "the mbarrier is not in the destination's CTA pair")
        if rank:
            where = [_signed(_one(warp, c, "coordinates")) for c in coordinates]
            tmap = map_at(warp, _one(warp, at, "tensor map") + at_offset)
            box = Box(warp, tmap, where)
            count, bits = tmap.box_bytes, tmap.swizzle
            if offset % 128:
                raise Hazard(Kind.MISALIGNED, f"shared address {destination:#x} of a tensor copy")
        else:
            count, bits = _one(warp, size, "size"), 0
            address = _one(warp, at, "source") + at_offset
            if count % 16 or address % 16 or offset % 16:
                raise Hazard(Kind.MISALIGNED, "a bulk copy needs multiples of 16")
            box = None
        lanes = _one(warp, mask, "mask") if mask is not None else 1 << own.rank
        if not lanes or lanes >> len(warp.cluster.ctas):
            raise Hazard(Kind.OUT_OF_BOUNDS, f"CTA mask {lanes:#b} in this cluster")
        machine = warp.machine
        machine.counts["tma loads"] += 1
        for cta in warp.cluster.ctas:
            if not lanes >> cta.rank & 1:
                continue
            # ::2 signals the CTA of the pair whose parity is that of the mbarrier's address
            rank_of = cta.rank if group == 1 else cta.rank & ~1 | signal_cta.rank & 1
            target = rank_of << RANK_SHIFT | signal_at
            barrier = mbarrier_at(warp, target)
            cta.shared.bound(offset, offset + count)
            event = 0
            if machine.options.check:
                event = warp.cluster.events.new(Event("TMA load", instruction.line, warp.where))
                region = slice(offset, offset + count)
                cta.shared.shadow.write(region, event, warp.seen, warp.fenced)

            def arrive(cta: Any = cta, barrier: Any = barrier, event: int = event) -> None:
                if cta.exited:
                    raise Hazard(
                        Kind.EXITED, f"a TMA load arrives in CTA {cta.index}, which has exited"
                    )
                if box is not None:
                    data = box.fetch(machine.memory, warp)
                else:
                    tensor = machine.memory.find(address, address + count)
                    begin = address - tensor.base
                    machine.memory.read_check(tensor, slice(begin, begin + count), warp)
                    data = tensor.bytes.data[begin : begin + count]
                if bits:
                    order = tensor_map.places(offset, count, bits) + offset // 16
                    cta.shared.bytes.chunks[order] = data.view(np.uint64).reshape(-1, 2)
                else:
                    cta.shared.bytes.data[offset : offset + count] = data
                barrier.arrive(0, -count, 1 << event if event else 0, 0)

            _later(warp, instruction, arrive)

    return step


def _later(warp: Any, instruction: ptx.Instruction, work: Callable[[], None]) -> None:
    """Does the work of an instruction after a random delay."""

    def run() -> None:
        try:
            work()
        except Hazard as hazard:
            raise hazard.at(instruction.line, instruction.text, warp.where) from None

    warp.machine.after(warp.machine.delay(), run)


def _single(warp: Any, instruction: ptx.Instruction) -> None:
    """Each thread that runs it issues it: more than one is a mistake."""
    if warp.mask & (warp.mask - 1):
        raise Hazard(
            Kind.MANY_LANES, f"{warp.mask.bit_count()} lanes issue this; one of them is meant to"
        )


def _signed(value: int) -> int:
    return value - (1 << 32) if value >> 31 else value


def _store(instruction: ptx.Instruction, program: Program, rank: int, hinted: bool) -> Step:
    operands = list(instruction.operands)
    target = operands.pop(0)
    at, at_offset = program.address(target, 64)
    source, source_offset = program.address(operands.pop(0))
    coordinates, size = [], 0
    if rank:
        assert isinstance(target, ptx.Address) and target.coordinates is not None
        coordinates = [program.source(c, 32) for c in target.coordinates.items]
    else:
        size = program.source(operands.pop(0), 32)
    if len(operands) != hinted:
        raise instruction.unsupported(f"{len(operands) - hinted} operands too many")

    def step(warp: Any) -> None:
        # ptxas issues a store once for a warp whose lanes agree; the DSL relies on it
        machine = warp.machine
        warp.access_global()
        cta, offset = cta_at(warp, _one(warp, source, "source") + source_offset)
        if cta is not warp.cta:
            raise Hazard(Kind.OUT_OF_BOUNDS, "a bulk store from another CTA's shared memory")
        if rank:
            where = [_signed(_one(warp, c, "coordinates")) for c in coordinates]
            tmap = map_at(warp, _one(warp, at, "tensor map") + at_offset)
            box = Box(warp, tmap, where)
            count, bits = tmap.box_bytes, tmap.swizzle
            if offset % 128:
                raise Hazard(Kind.MISALIGNED, f"shared offset {offset:#x} of a tensor copy")
        else:
            box, bits = None, 0
            count, address = _one(warp, size, "size"), _one(warp, at, "target") + at_offset
            if count % 16 or address % 16 or offset % 16:
                raise Hazard(Kind.MISALIGNED, "a bulk copy needs multiples of 16")
            tensor = machine.memory.find(address, address + count)
        cta.shared.bound(offset, offset + count)
        machine.counts["tma stores"] += 1
        event = warp.cluster.events.new(Event("TMA store", instruction.line, warp.where))
        if machine.options.check:
            region = slice(offset, offset + count)
            cta.shared.shadow.read(region, event, warp.seen, warp.fenced)
        transfer = {"read": False, "event": event}
        warp.bulk.append(transfer)

        def read() -> None:
            if bits:
                order = tensor_map.places(offset, count, bits) + offset // 16
                data = cta.shared.bytes.chunks[order].view(np.uint8).reshape(-1)
            else:
                data = cta.shared.bytes.data[offset : offset + count].copy()
            transfer["read"] = True
            warp.wake()
            if box is not None:
                box.put(machine.memory, data, warp, event)
            else:
                begin = address - tensor.base
                region = slice(begin, begin + count)
                machine.memory.write_check(tensor, region, warp, event)
                tensor.bytes.data[region] = data

        _later(warp, instruction, read)

    return step


def _commit_group(warp: Any) -> None:
    warp.bulk_groups.append(warp.bulk)
    warp.bulk = []


def _wait_group(instruction: ptx.Instruction, program: Program, modifiers: Modifiers) -> Step:
    """All but the n youngest groups have ended (.read: have read their sources)."""
    modifiers.take("read")
    modifiers.done()
    (count,) = instruction.operands
    if not isinstance(count, ptx.Immediate):
        raise instruction.unsupported("only with a constant")
    keep = int(count.value)

    def step(warp: Any) -> int | None:
        groups = warp.bulk_groups
        done = groups[: len(groups) - keep] if keep < len(groups) else []
        if any(not transfer["read"] for group in done for transfer in group):
            return BLOCKED
        for group in done:
            for transfer in group:
                warp.seen |= 1 << transfer["event"]
        del groups[: len(done)]
        return None

    return step


def _prefetch(instruction: ptx.Instruction, program: Program, modifiers: Modifiers) -> Step:
    """cp.async.bulk.prefetch, into L2, which is not modelled; but its operands are checked."""
    rank = int(modifiers.need("1d", "2d", "3d", "4d", "5d")[0]) if modifiers.take("tensor") else 0
    modifiers.need("L2")
    modifiers.need("global")
    modifiers.take("tile")
    modifiers.take("L2::cache_hint")
    modifiers.done()
    source = instruction.operands[0]
    at, offset = program.address(source, 64)
    coordinates = []
    if rank:
        assert isinstance(source, ptx.Address) and source.coordinates is not None
        coordinates = [program.source(c, 32) for c in source.coordinates.items]
    else:
        size = program.source(instruction.operands[1], 32)

    def step(warp: Any) -> None:
        warp.machine.counts["tma prefetches"] += 1
        if rank:
            where = [_signed(_one(warp, c, "coordinates")) for c in coordinates]
            Box(warp, map_at(warp, _one(warp, at, "tensor map") + offset), where)
        else:
            address = _one(warp, at, "source") + offset
            warp.machine.memory.find(address, address + _one(warp, size, "size"))

    return step


def _decode_prefetch(instruction: ptx.Instruction, program: Program) -> Step:
    modifiers = Modifiers(instruction)
    kind = modifiers.need("tensormap", "L1", "L2")
    modifiers.take("param", "const", "global")
    modifiers.done()
    at, offset = program.address(instruction.operands[0], 64)

    def step(warp: Any) -> None:
        if kind == "tensormap":
            map_at(warp, _one(warp, at, "tensor map") + offset)

    return step


DECODERS: Mapping[str, Decoder] = {"cp": _decode_cp, "prefetch": _decode_prefetch}
