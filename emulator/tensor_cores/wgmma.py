"""MMAs of a warpgroup (PTX ISA: Asynchronous Warpgroup Level Matrix Instructions).

Each of the four warps multiplies its own 16 of the 64 rows. It does so when the instruction is
issued, but the accumulator's registers have no usable value before wgmma.wait_group. Reads of
shared memory last until then, too. Sums are those of warp_mma.py.

wgmma.fence has to come between other writes of a register and a wgmma that uses it. A register
whose value differs from that at the warp's last fence was written since.
"""

import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import numpy as np

from nvfp4.emulator import ptx
from nvfp4.emulator.engine.registers import Loading
from nvfp4.emulator.hazards import Hazard, Kind
from nvfp4.emulator.isa.builder import Builder, Decoder
from nvfp4.emulator.isa.modifiers import Modifiers
from nvfp4.emulator.lanes import pick
from nvfp4.emulator.machine.program import Step
from nvfp4.emulator.tensor_cores.elements import DECODE
from nvfp4.emulator.tensor_cores.fragments import accumulator, accumulator_words, matrix_a
from nvfp4.emulator.tensor_cores.wgmma_operands import chunks, codes, descriptor

_ROWS = 16  # of a warp
_K_BYTES = 32  # of a row of A or B, in one MMA
_SUMS: Mapping[str, Any] = {"f32": np.float32, "f16": np.float16, "s32": np.int32}


@dataclass
class _Batch:
    """The MMAs of a warp between two commits."""

    event: int = 0
    loading: dict[int, Loading] = field(default_factory=dict)
    """The accumulator's registers by their slots."""
    operands: dict[int, Any] = field(default_factory=dict)
    """The registers of A by their slots, as they were at the issue."""


@dataclass
class _Pipe:
    """A warp's MMAs in flight, oldest batch first; the last batch is not committed yet."""

    batches: list[_Batch] = field(default_factory=lambda: [_Batch()])
    fenced: dict[int, Any] = field(default_factory=dict)
    """The registers that MMAs use, as they were at the last wgmma.fence."""

    def in_flight(self, slot: int, value: Any) -> bool:
        """Say whether a register holds the result of an MMA that is not waited for."""
        return any(batch.loading.get(slot) is value for batch in self.batches)


def _pipe(warp: Any) -> _Pipe:
    pipe: _Pipe = warp.state.setdefault("wgmma", _Pipe())
    return pipe


def _decode_wgmma(instruction: ptx.Instruction, builder: Builder) -> Step:
    modifiers = Modifiers(instruction)
    name = modifiers.need("mma_async", "fence", "commit_group", "wait_group")
    modifiers.need("sync")
    modifiers.need("aligned")
    if name == "mma_async":
        return _decode_mma(instruction, builder, modifiers)
    modifiers.done()
    if name == "fence":
        return _decode_fence(builder)
    if name == "wait_group":
        return _decode_wait(instruction)

    def commit(warp: Any) -> int | None:
        if (blocked := warp.converge()) is not None:
            return blocked
        _pipe(warp).batches.append(_Batch())
        return None

    return commit


def _decode_fence(builder: Builder) -> Step:
    """Keep the values of all registers that the kernel's MMAs use."""
    slots = sorted({
        builder.source(item, 32)
        for i in builder.kernel.instructions
        if i.opcode == "wgmma"
        for operand in i.operands[:2]
        if isinstance(operand, ptx.Vector)
        for item in operand.items
    })  # fmt: skip

    def step(warp: Any) -> int | None:
        if (blocked := warp.converge()) is not None:
            return blocked
        _pipe(warp).fenced = {slot: warp.registers.content(slot) for slot in slots}
        return None

    return step


def _same(a: Any, b: Any) -> bool:
    if a is b:
        return True
    if a is None or b is None or Loading in (a.__class__, b.__class__):
        return False
    return bool(a.tobytes() == b.tobytes())


def _decode_wait(instruction: ptx.Instruction) -> Step:
    (count,) = instruction.operands
    if not isinstance(count, ptx.Immediate):
        raise instruction.unsupported("only with a constant")
    keep = int(count.value)

    def step(warp: Any) -> int | None:
        if (blocked := warp.converge()) is not None:
            return blocked
        pipe = _pipe(warp)
        done = pipe.batches[: max(len(pipe.batches) - 1 - keep, 0)]
        del pipe.batches[: len(done)]
        for batch in done:
            warp.seen |= 1 << batch.event if batch.event else 0
            if warp.machine.options.check:
                _check_operands(warp, batch)
        results: dict[int, Loading] = {}
        for batch in done:
            results |= batch.loading  # the last MMA's result is that of a register
        for slot, loading in results.items():
            if not any(slot in later.loading for later in pipe.batches):
                pipe.fenced[slot] = _value(warp, slot, loading)
        return None

    return step


def _check_operands(warp: Any, batch: _Batch) -> None:
    for slot, value in batch.operands.items():
        if not _same(warp.registers.content(slot), value):
            raise Hazard(Kind.OVERWRITE, "a register of A was overwritten without wgmma.wait_group")


def _value(warp: Any, slot: int, loading: Loading) -> np.ndarray:
    """Give the value of an accumulator's register, which nothing else may have written."""
    if warp.registers.content(slot) is not loading:
        raise Hazard(
            Kind.OVERWRITE,
            f"a register of the wgmma in PTX line {loading.line} was overwritten without"
            " wgmma.wait_group",
        )
    warp.registers.loaded(loading, (slot,))
    value: np.ndarray = warp.registers[slot]
    return value


class _Shared(NamedTuple):
    """An operand in shared memory: the slot of its descriptor."""

    slot: int
    mn_major: bool

    def read(self, warp: Any, rows: int, bits: int, event: int) -> np.ndarray:
        """Give [rows, K] codes, and record the read."""
        matrix = descriptor(pick(warp.registers[self.slot], warp.mask))
        where = chunks(matrix, rows, _K_BYTES, self.mn_major)
        shared = warp.cta.shared
        shared.bound(int(where.min()) * 16, int(where.max()) * 16 + 16)
        if warp.machine.options.check:
            shared.chunk_shadow.read(where, event, warp.seen, warp.fenced)
        return codes(shared.bytes.chunks[where], bits, self.mn_major)


def _decode_mma(instruction: ptx.Instruction, builder: Builder, modifiers: Modifiers) -> Step:
    shape = next((m for m in instruction.modifiers if re.fullmatch(r"m64n\d+k\d+", m)), "m64nNkK")
    modifiers.need(shape)
    n, k = (int(x) for x in re.findall(r"\d+", shape)[1:])
    total = modifiers.need(*_SUMS)
    types = [m for m in instruction.modifiers if m in DECODE and m != total or m == "f16"]
    type_a, type_b = types[-2:]
    for name in (type_a, type_b):
        modifiers.need(name)
    modifiers.done()
    (bits, decode_a), (bits_b, decode_b) = DECODE[type_a], DECODE[type_b]
    if bits != bits_b or k * bits != 8 * _K_BYTES or n % 8 or not 8 <= n <= 256:
        raise instruction.unsupported("a shape that wgmma does not have")
    d, a, b, *rest = instruction.operands
    assert isinstance(d, ptx.Vector), d
    slots_d = tuple(builder.source(item, 32) for item in d.items)
    if len(slots_d) != (n // 4 if total == "f16" else n // 2):
        raise ValueError(f"{len(slots_d)} registers for an accumulator of {n} columns")
    items_a = a.items if isinstance(a, ptx.Vector) else ()
    slots_a = tuple(builder.source(item, 32) for item in items_a)
    if slots_a and len(slots_a) != 4:
        raise ValueError(f"{len(slots_a)} registers for A")
    enable = builder.predicate(rest.pop(0))
    signs = [_immediate(rest.pop(0), (-1, 1)) for _ in range(2)] if total != "s32" else [1, 1]
    majors = [_immediate(o, (0, 1)) for o in rest]
    if len(majors) != (0 if bits != 16 else 1 if slots_a else 2):
        raise ValueError(f"{len(majors)} operands for the majorness")
    shared_a = None if slots_a else _Shared(builder.source(a, 64), bool(majors and majors[0]))
    shared_b = _Shared(builder.source(b, 64), bool(majors and majors[-1]))

    def step(warp: Any) -> int | None:
        if (blocked := warp.converge()) is not None:
            return blocked
        _check_warpgroup(warp)
        pipe = _pipe(warp)
        batch = pipe.batches[-1]
        if not batch.event:
            batch.event = warp.new_event("wgmma from here on", instruction)
        if warp.machine.options.check:
            _check_fence(warp, pipe, slots_a, slots_d)
        if shared_a is None:
            left = matrix_a(warp.registers.rows(slots_a), bits)
            batch.operands.update((slot, warp.registers[slot]) for slot in slots_a)
        else:
            own = slice(_ROWS * (warp.index % 4), _ROWS * (warp.index % 4 + 1))
            left = shared_a.read(warp, 64, bits, batch.event)[own]
        right = shared_b.read(warp, n, bits, batch.event)
        with np.errstate(all="ignore"):
            product = decode_a(left).dot(decode_b(right).T) * (signs[0] * signs[1])
            if (warp.registers[enable[0]] ^ enable[1]) & warp.mask:
                product = product + _accumulator(warp, pipe, slots_d, total)
            words = accumulator_words(_wrapped(product, total))
        warp.registers.set_rows(slots_d, words)
        loading = Loading(instruction.line, "wgmma", "wgmma.wait_group")
        warp.registers.load(list(slots_d), loading)
        batch.loading.update(dict.fromkeys(slots_d, loading))
        warp.machine.counts["wgmma"] += 1
        return None

    return step


def _immediate(operand: ptx.Operand, allowed: tuple[int, int]) -> int:
    if not isinstance(operand, ptx.Immediate) or operand.value not in allowed:
        raise ValueError(f"{operand} is none of {allowed}")
    return int(operand.value)


def _wrapped(total: np.ndarray, kind: str) -> np.ndarray:
    if kind == "s32":
        return total.astype(np.int64).astype(np.int32)
    rounded: np.ndarray = total.astype(_SUMS[kind])
    return rounded


def _accumulator(warp: Any, pipe: _Pipe, slots: tuple[int, ...], kind: str) -> np.ndarray:
    """Give the [16, N] values of an accumulator, which may be the result of an MMA in flight."""
    registers = warp.registers
    words = np.empty((len(slots), 32), np.uint32)
    for i, slot in enumerate(slots):
        flies = pipe.in_flight(slot, registers.content(slot))
        words[i] = registers.coming(slot) if flies else registers[slot]
    bits = 16 if kind == "f16" else 32
    return accumulator(words, bits).view(_SUMS[kind]).astype(np.float64)


def _check_warpgroup(warp: Any) -> None:
    if warp.index // 4 * 128 + 128 > warp.cta.threads:
        raise Hazard(Kind.PARTIAL_WARP, "a warpgroup of wgmma has four warps")


def _check_fence(
    warp: Any, pipe: _Pipe, slots_a: tuple[int, ...], slots_d: tuple[int, ...]
) -> None:
    """Refuse registers that were written since the last wgmma.fence, except by MMAs."""
    if not pipe.fenced:
        raise Hazard(Kind.EARLY_READ, "no wgmma.fence comes before the first wgmma")
    registers = warp.registers
    for name, slots in (("A", slots_a), ("the accumulator", slots_d)):
        for slot in slots:
            value = registers.content(slot)
            if not _same(value, pipe.fenced[slot]) and not pipe.in_flight(slot, value):
                raise Hazard(
                    Kind.EARLY_READ,
                    f"a register of {name} was written without wgmma.fence before the wgmma",
                )


DECODERS: Mapping[str, Decoder] = {"wgmma": _decode_wgmma}
