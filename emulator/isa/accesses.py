"""Loads, stores and address conversions (PTX ISA: Data Movement and Conversion)."""

from collections.abc import Mapping
from typing import Any

import numpy as np

from nvfp4.emulator import ptx
from nvfp4.emulator.engine.records import Does, Record
from nvfp4.emulator.engine.registers import ALWAYS
from nvfp4.emulator.hazards import Hazard, Kind
from nvfp4.emulator.isa.builder import Builder, Decoded, Decoder, Lanes
from nvfp4.emulator.isa.modifiers import Modifiers
from nvfp4.emulator.lanes import (
    ALL,
    DTYPES,
    SIGNED,
    members,
    pick,
    signed,
    spread,
    uniform,
)
from nvfp4.emulator.machine.program import Step
from nvfp4.emulator.machine.shared_addresses import cta_at
from nvfp4.emulator.memory.addresses import OFFSET_MASK, PARAMETER_WINDOW, RANK_SHIFT, SHARED_WINDOW
from nvfp4.emulator.memory.shadow import Access

SPACES = ("param", "global", "shared", "shared::cta", "shared::cluster", "const", "local")
_WINDOW_MASK = SHARED_WINDOW - 1


def resolve(space: str, address: int) -> tuple[str, int]:
    """Give the state space of an address, and the address within that space."""
    if space:
        return space, address
    if address & SHARED_WINDOW:
        return "shared::cluster", address & _WINDOW_MASK
    if address & PARAMETER_WINDOW:
        return "param", address & (PARAMETER_WINDOW - 1)
    return "global", address


def check_alignment(addresses: np.ndarray, width: int) -> None:
    """Refuse addresses that are not multiples of an access's width in bytes."""
    wrong = addresses & (width - 1)
    if wrong.any():
        address = int(addresses[wrong != 0][0])
        raise Hazard(Kind.MISALIGNED, f"address {address:#x} in a {width}-byte access")


def load(
    warp: Any,
    space: str,
    addresses: np.ndarray,
    bits: int,
    count: int,
    ins: Any,
    strong: bool = False,
) -> Any:
    """Load [addresses, count] elements; a `strong` load may race with writers."""
    width = bits // 8 * count
    check_alignment(addresses, width)
    space, _ = resolve(space, int(addresses[0]))
    if space == "global":
        warp.access_global()
        return warp.machine.memory.load(addresses, bits, count, None if strong else warp)
    if space == "param":
        addresses = addresses & (PARAMETER_WINDOW - 1)
        if int(addresses.max()) + width > len(warp.machine.parameters.data):
            raise Hazard(Kind.OUT_OF_BOUNDS, "past the end of the kernel's parameters")
        return warp.machine.parameters.gather(addresses, bits, count)
    if not space.startswith("shared"):
        raise ins.unsupported(f"the state space {space} is not known")
    out = np.empty((len(addresses), count), DTYPES[bits])
    for cta, offsets, chosen in _shared_parts(warp, addresses & _WINDOW_MASK, width):
        if warp.machine.options.check:
            cells = offsets[:, None] + np.arange(width)
            cta.shared.shadow.read(cells, shared_event(warp, cta, ins), warp.seen)
        out[chosen] = cta.shared.bytes.gather(offsets, bits, count)
    return out


def store(warp: Any, space: str, addresses: np.ndarray, values: np.ndarray, ins: Any) -> None:
    width = values.itemsize * values.shape[1]
    check_alignment(addresses, width)
    space, _ = resolve(space, int(addresses[0]))
    if space == "global":
        warp.access_global()
        event = warp.event(ins, Access.GLOBAL)
        warp.machine.memory.store(addresses, values, warp, event)
    elif space.startswith("shared"):
        for cta, offsets, chosen in _shared_parts(warp, addresses & _WINDOW_MASK, width):
            if warp.machine.options.check:
                cells = offsets[:, None] + np.arange(width)
                event = shared_event(warp, cta, ins)
                new = values[chosen].view(np.uint8)
                old = cta.shared.bytes.data
                cta.shared.shadow.store(
                    cells, event, warp.seen, lambda c=cells, n=new, o=old: o[c] == n
                )
            cta.shared.bytes.scatter(offsets, values[chosen])
    else:
        raise ins.unsupported(f"no stores to the state space {space}")


def shared_event(warp: Any, cta: Any, ins: ptx.Instruction) -> int:
    """Give the event of an access to a CTA's shared memory."""
    if cta is warp.cta:
        return int(warp.event(ins))
    event = int(warp.event(ins, Access.PEER_SHARED))
    cta.incoming |= 1 << event
    return event


def _shared_parts(warp: Any, addresses: np.ndarray, width: int) -> list[tuple[Any, Any, Any]]:
    """Part shared addresses by CTA: the CTA, the offsets in it, and which addresses they are."""
    low, high = int(addresses.min()), int(addresses.max())
    ranks = [low >> RANK_SHIFT]
    chosen: Any = slice(None)
    if low >> RANK_SHIFT != high >> RANK_SHIFT:
        ranks = np.unique(addresses >> RANK_SHIFT).tolist()
    parts = []
    for rank in ranks:
        if len(ranks) > 1:
            chosen = np.flatnonzero(addresses >> RANK_SHIFT == rank)
        cta, _ = cta_at(warp, rank << RANK_SHIFT)
        offsets = addresses[chosen] & OFFSET_MASK
        cta.shared.bound(int(offsets.min()), int(offsets.max()) + width)
        parts.append((cta, offsets, chosen))
    return parts


class _Access:
    """The modifiers that ld and st share; hints that change no result are dropped."""

    def __init__(self, instruction: ptx.Instruction, builder: Builder) -> None:
        modifiers = Modifiers(instruction)
        self.letter, self.bits = modifiers.type()
        self.space = modifiers.take(*SPACES)
        self.count = int(modifiers.take("v2", "v4", "v8")[1:] or 1)
        # The machine is sequentially consistent, so strength changes no value. It decides which
        # accesses to global memory may race (GlobalMemory.read_check). In shared memory, strong
        # accesses count as ordinary ones, which is stricter.
        order = modifiers.take("weak", "volatile", "relaxed", "acquire", "release")
        wide = modifiers.take("cta", "cluster", "gpu", "sys") in ("gpu", "sys")
        self.strong = order not in ("", "weak")
        self.acquires, self.releases = order == "acquire" and wide, order == "release" and wide
        modifiers.take("nc")
        modifiers.take("ca", "cg", "cs", "cv", "lu", "wb", "wt")
        modifiers.take("unified")
        modifiers.take(*(f"L1::{p}" for p in _POLICIES))
        modifiers.take(*(f"L2::{p}" for p in _POLICIES))
        modifiers.take("L2::64B", "L2::128B", "L2::256B")
        modifiers.take("L2::cache_hint")
        modifiers.done()
        if self.bits == 128:
            raise instruction.unsupported("128-bit registers are not known")

    def lanes(
        self,
        does: Does,
        builder: Builder,
        base: int,
        offset: int,
        elements: tuple[int, ...],
        step: Step,
    ) -> Lanes:
        """Make the engine's record of the access, if it may be one of those that it knows."""
        space = _ENGINE_SPACES.get(self.space)
        if space is None or self.acquires or self.releases or not -(1 << 31) <= offset < 1 << 31:
            return Lanes((), step)
        shape = memory_shape(self.bits, self.count, builder.bits[base], self.letter == "s")
        flips = shape, space | self.strong << 8
        return Lanes(
            [Record(does, 0, ALWAYS, (base,), offset, flips=flips, elements=elements)], step
        )


def memory_shape(bits: int, count: int, base_bits: int, flag: bool) -> int:
    """Pack what an access is like, for engine.c: elements, their number, the address, a flag."""
    return bits // 8 | count << 8 | base_bits // 8 << 16 | flag << 24


_ENGINE_SPACES = {
    "": 0, "global": 1, "shared": 2, "shared::cta": 2, "shared::cluster": 2, "param": 3
}  # fmt: skip
"""The numbers of state spaces in engine/memory.h."""
_POLICIES = ("evict_first", "evict_last", "evict_normal", "evict_unchanged", "no_allocate")


def _decode_ld(instruction: ptx.Instruction, builder: Builder) -> Lanes:
    """Decode ld. The engine runs it, and leaves what it does not know to be right to this step."""
    access = _Access(instruction, builder)
    space, bits, count = access.space, access.bits, access.count
    into = instruction.operands[0]
    results = into.items if isinstance(into, ptx.Vector) else (into,)
    puts = [builder.put(operand, bits) for operand in results]
    widths = [builder.bits[builder.result(operand, bits)] for operand in results]
    base, offset = builder.address(instruction.operands[1], 32 if space != "" else 64)
    sign_extends = access.letter == "s"
    strong, acquires = access.strong, access.acquires

    def step(warp: Any) -> None:
        if acquires:
            warp.acquire_from_gpu()
        address = warp.registers[base]
        mask = warp.mask
        same = uniform(address, mask)
        if same is not None:
            data = load(warp, space, np.array([same + offset]), bits, count, instruction, strong)
            for put, width, value in zip(puts, widths, data[0].tolist(), strict=True):
                if sign_extends and width > bits:
                    value = signed(value, bits) & ((1 << width) - 1)
                put(warp, value)
            return
        lanes = members(mask)
        addresses = address[lanes].astype(np.int64) + offset
        data = load(warp, space, addresses, bits, count, instruction, strong)
        if sign_extends:
            data = data.view(SIGNED[bits])
        for i, (put, width) in enumerate(zip(puts, widths, strict=True)):
            value = data[:, i].astype(SIGNED[width] if sign_extends else DTYPES[width])
            if mask != ALL:
                whole = np.zeros(32, value.dtype)
                whole[lanes] = value
                value = whole
            put(warp, value.view(DTYPES[width]))

    elements = tuple(builder.result(operand, bits) for operand in results)
    return access.lanes(Does.LOAD, builder, base, offset, elements, step)


def _decode_st(instruction: ptx.Instruction, builder: Builder) -> Lanes:
    """Decode st, which the engine runs as it does ld."""
    access = _Access(instruction, builder)
    space, bits = access.space, access.bits
    base, offset = builder.address(instruction.operands[0], 32 if space != "" else 64)
    data = instruction.operands[1]
    items = data.items if isinstance(data, ptx.Vector) else (data,)
    slots = [builder.source(operand, bits) for operand in items]
    releases = access.releases

    def step(warp: Any) -> None:
        registers, mask = warp.registers, warp.mask
        if releases:
            warp.release_to_gpu()
        address = registers[base]
        columns = np.empty((32, len(slots)), DTYPES[bits])
        for i, slot in enumerate(slots):
            columns[:, i] = spread(registers[slot], bits)
        addresses = address.astype(np.int64) + offset
        if mask != ALL:
            lanes = members(mask)
            addresses, columns = addresses[lanes], columns[lanes]
        store(warp, space, addresses, columns, instruction)

    return access.lanes(Does.STORE, builder, base, offset, tuple(slots), step)


def _decode_mapa(instruction: ptx.Instruction, builder: Builder) -> Step:
    modifiers = Modifiers(instruction)
    _, bits = modifiers.type()
    generic = not modifiers.take("shared::cluster")
    modifiers.done()
    put = builder.put(instruction.operands[0], bits)
    source = builder.source(instruction.operands[1], bits)
    rank = builder.source(instruction.operands[2], 32)
    window = SHARED_WINDOW if generic else 0

    def step(warp: Any) -> None:
        address, to = warp.registers[source], warp.registers[rank]
        wide = spread(to, 64)
        if (wide[members(warp.mask)] >= len(warp.cluster.ctas)).any():
            raise Hazard(Kind.OUT_OF_BOUNDS, "no such CTA in the cluster")
        result = spread(address, 64) & np.uint64(OFFSET_MASK) | wide << np.uint64(RANK_SHIFT)
        put(warp, (result | np.uint64(window)).astype(DTYPES[bits]))

    return step


def _decode_cvta(instruction: ptx.Instruction, builder: Builder) -> Decoded:
    """Convert an address between its state space and generic: add or remove a window's base."""
    modifiers = Modifiers(instruction)
    _, bits = modifiers.type()
    to = modifiers.take("to")
    space = modifiers.need(*SPACES)
    modifiers.done()
    window = {"global": 0, "const": 0, "param": PARAMETER_WINDOW}.get(space, SHARED_WINDOW)
    into, operand = instruction.operands
    if not window:
        return builder.lanes(f"mov_u{bits}", into, bits, (operand,), (bits,))
    put, source = builder.put(into, bits), builder.source(operand, bits)

    def step(warp: Any) -> None:
        address = warp.registers[source]
        one = pick(address, warp.mask)
        if to and bool(one & window) != bool(window):
            raise Hazard(Kind.OUT_OF_BOUNDS, f"generic address {one:#x} is not in .{space}")
        put(warp, address ^ DTYPES[bits](window))

    return step


DECODERS: Mapping[str, Decoder] = {
    "ld": _decode_ld,
    "st": _decode_st,
    "mapa": _decode_mapa,
    "cvta": _decode_cvta,
}
