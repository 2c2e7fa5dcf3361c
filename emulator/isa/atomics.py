"""Atomic operations on global and shared memory (PTX ISA: atom, red).

The lanes of an instruction are served in ascending order. So are the elements of a vector.
"""

import operator
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import numpy as np

from nvfp4.emulator import ptx
from nvfp4.emulator.engine import library
from nvfp4.emulator.isa.accesses import SPACES, check_alignment, resolve
from nvfp4.emulator.isa.builder import Builder, Decoder
from nvfp4.emulator.isa.modifiers import Modifiers
from nvfp4.emulator.lanes import DTYPES, LANES, members, spread
from nvfp4.emulator.machine.program import Step
from nvfp4.emulator.machine.shared_addresses import cta_at
from nvfp4.emulator.memory.addresses import SHARED_WINDOW
from nvfp4.emulator.memory.shadow import Access


class _Type(NamedTuple):
    """An element's type: its name, its bits, and how numpy computes with it."""

    name: str
    bits: int
    dtype: Any
    """None for f16 and bf16, which the engine computes."""


def _type(modifiers: Modifiers) -> _Type:
    name = modifiers.need(*_TYPES)
    bits = 32 if name.endswith("x2") else int(name.lstrip("busf"))
    letter = "h" if name.endswith("x2") or "f16" in name else name[0]
    kinds: Mapping[str, Any] = {"s": "i", "f": "f", "u": "u", "b": "u"}
    return _Type(name, bits, np.dtype(f"{kinds[letter]}{bits // 8}") if letter != "h" else None)


_TYPES = (
    "u32", "s32", "u64", "s64", "b16", "b32", "b64", "f32", "f64", "f16", "bf16", "f16x2", "bf16x2",
)  # fmt: skip


def _increment(old: Any, limit: Any) -> Any:
    return 0 if old >= limit else old + 1


def _decrement(old: Any, limit: Any) -> Any:
    return limit if old == 0 or old > limit else old - 1


_OPERATIONS: Mapping[str, Callable[[Any, Any], Any]] = {
    "add": operator.add,
    "min": min,
    "max": max,
    "and": operator.and_,
    "or": operator.or_,
    "xor": operator.xor,
    "inc": _increment,
    "dec": _decrement,
    "exch": lambda old, new: new,
}


def _combine(operation: str, kind: _Type, old: int, sources: list[int]) -> int:
    """Give the bits that replace the bits `old`."""
    if operation == "cas":
        return sources[1] if old == sources[0] else old
    if operation == "exch":
        return sources[0]
    pair = np.array([old, sources[0]], DTYPES[kind.bits])
    if kind.dtype is not None:
        a, b = pair.view(kind.dtype)
        with np.errstate(over="ignore", invalid="ignore"):
            new = np.array([_OPERATIONS[operation](a, b)]).astype(kind.dtype)
        return int(new.view(DTYPES[kind.bits])[0])
    return int(library.apply(f"{operation}_{kind.name}", *np.repeat(pair, LANES).reshape(2, -1))[0])


class _Place(NamedTuple):
    """Where an element lies: the bytes that hold it, and its offset in them."""

    bytes: Any
    offset: int


def _place(warp: Any, space: str, address: int, width: int, event: int) -> _Place:
    """Find an element, and check and record that the warp accesses it atomically."""
    space, address = resolve(space, address)
    machine = warp.machine
    if space == "global":
        tensor = machine.memory.find(address, address + width)
        where = address - tensor.base
        cells = np.arange(where, where + width)
        machine.memory.read_check(tensor, cells, None)
        machine.memory.write_check(tensor, cells, warp, event, True)
        return _Place(tensor.bytes, where)
    cta, offset = cta_at(warp, address & (SHARED_WINDOW - 1))
    cta.shared.bound(offset, offset + width)
    if machine.options.check:
        cta.shared.shadow.atomic(slice(offset, offset + width), event, warp.seen)
    return _Place(cta.shared.bytes, offset)


def _decode_atom(instruction: ptx.Instruction, builder: Builder) -> Step:
    modifiers = Modifiers(instruction)
    kind = _type(modifiers)
    space = modifiers.take(*SPACES)
    order = modifiers.take("relaxed", "acquire", "release", "acq_rel")
    wide = modifiers.take("cta", "cluster", "gpu", "sys") in ("gpu", "sys")
    operation = modifiers.need(*_OPERATIONS, "cas")
    count = int(modifiers.take("v2", "v4", "v8")[1:] or 1)
    modifiers.take("noftz")
    modifiers.take("L2::cache_hint")
    modifiers.done()
    if space not in ("", "global") and not space.startswith("shared"):
        raise instruction.unsupported(f"no atomics in the state space {space}")
    returns = instruction.opcode == "atom"
    operands = list(instruction.operands)
    into = operands.pop(0) if returns else None
    puts = [builder.put(item, kind.bits) for item in _items(into)] if into is not None else []
    base, offset = builder.address(operands.pop(0), 32 if space.startswith("shared") else 64)
    needed = 2 if operation == "cas" else 1
    slots = [[builder.source(item, kind.bits) for item in _items(o)] for o in operands[:needed]]
    if any(len(items) != count for items in slots) or (returns and len(puts) != count):
        raise ValueError(f"{count} elements in each operand")
    size = kind.bits // 8

    def step(warp: Any) -> None:
        registers = warp.registers
        if space in ("", "global"):
            warp.access_global()
        if wide and order in ("release", "acq_rel"):
            warp.release_to_gpu()
        if wide and order in ("acquire", "acq_rel"):
            warp.acquire_from_gpu()
        addresses = spread(registers[base], 64).astype(np.int64) + offset
        sources = [[spread(registers[slot], kind.bits) for slot in items] for items in slots]
        before = np.zeros((count, 32), DTYPES[kind.bits])
        event = warp.event(instruction, Access.ATOMIC)
        for lane in members(warp.mask).tolist():
            address = int(addresses[lane])
            check_alignment(addresses[lane : lane + 1], size * count)
            for i in range(count):
                place = _place(warp, space, address + i * size, size, event)
                at = np.array([place.offset])
                old = int(place.bytes.gather(at, kind.bits, 1)[0, 0])
                before[i, lane] = old
                new = _combine(operation, kind, old, [int(items[i][lane]) for items in sources])
                place.bytes.scatter(at, np.array([[new]], DTYPES[kind.bits]))
        for put, values in zip(puts, before, strict=False):  # red has no results
            put(warp, values)

    return step


def _items(operand: ptx.Operand) -> tuple[ptx.Operand, ...]:
    return operand.items if isinstance(operand, ptx.Vector) else (operand,)


DECODERS: Mapping[str, Decoder] = {"atom": _decode_atom, "red": _decode_atom}
