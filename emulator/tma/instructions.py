"""The TMA unit's instructions: cp.async.bulk and prefetch (PTX ISA: Asynchronous Copy).

A transfer is an event from its issue on. At once, what it will write counts as written by it, and
what it will read as being read. So a program that does not wait is found out, however early the
bytes come. The bytes move after a random delay, and transfers end in any order.
"""

from collections.abc import Mapping
from typing import Any

from nvfp4.emulator import ptx
from nvfp4.emulator.isa import async_copies
from nvfp4.emulator.isa.builder import Builder, Decoder
from nvfp4.emulator.isa.modifiers import Modifiers
from nvfp4.emulator.machine.program import Step
from nvfp4.emulator.tma import bulk_groups
from nvfp4.emulator.tma.boxes import map_at
from nvfp4.emulator.tma.load import decode_load
from nvfp4.emulator.tma.regions import global_operand
from nvfp4.emulator.tma.store import decode_store


def _decode_cp(instruction: ptx.Instruction, builder: Builder) -> Step:
    modifiers = Modifiers(instruction, "async")
    if not modifiers.take("bulk"):
        return async_copies.decode(instruction, builder, modifiers)
    if modifiers.take("commit_group"):
        modifiers.done()
        return bulk_groups.commit
    if modifiers.take("wait_group"):
        return bulk_groups.decode_wait(instruction, modifiers)
    if modifiers.take("prefetch"):
        return _decode_bulk_prefetch(instruction, builder, modifiers)
    rank = _tensor_rank(modifiers)
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
        return decode_load(instruction, builder, rank, multicast, hinted, group)
    if pair == ("global", "shared") and completion == "bulk_group" and not multicast:
        return decode_store(instruction, builder, rank, hinted)
    raise instruction.unsupported("this direction and completion are not known")


def _tensor_rank(modifiers: Modifiers) -> int:
    """Take the number of dimensions; 0 for a copy of plain bytes."""
    if not modifiers.take("tensor"):
        return 0
    return int(modifiers.need("1d", "2d", "3d", "4d", "5d")[0])


def _decode_bulk_prefetch(
    instruction: ptx.Instruction, builder: Builder, modifiers: Modifiers
) -> Step:
    """Check the operands of cp.async.bulk.prefetch; the L2 cache itself is not modelled."""
    rank = _tensor_rank(modifiers)
    modifiers.need("L2")
    modifiers.need("global")
    modifiers.take("tile")
    modifiers.take("L2::cache_hint")
    modifiers.done()
    source, *rest = instruction.operands
    operand = global_operand(builder, source, rank, rest)

    def step(warp: Any) -> None:
        warp.one_lane()
        warp.machine.counts["tma prefetches"] += 1
        operand.region(warp)

    return step


def _decode_prefetch(instruction: ptx.Instruction, builder: Builder) -> Step:
    """Check the address of a prefetched tensor map; other prefetches do nothing."""
    modifiers = Modifiers(instruction)
    kind = modifiers.need("tensormap", "L1", "L2")
    modifiers.take("param", "const", "global")
    modifiers.done()
    at, offset = builder.address(instruction.operands[0], 64)

    def step(warp: Any) -> None:
        if kind == "tensormap":
            map_at(warp, warp.uniform(at, "tensor map") + offset)

    return step


DECODERS: Mapping[str, Decoder] = {"cp": _decode_cp, "prefetch": _decode_prefetch}
