"""tcgen05: the tensor core and its memory (PTX ISA: TensorCore 5th Generation Family Instructions).

Copies, MMAs and commits of a CTA run in the order of their issue, each after a random delay that
keeps the order. An MMA is computed exactly and rounded to float32 once, when it is added to the
accumulator; hardware's order of summation within one instruction is not documented.

Matrix products go through torch: its thread count can be set for a run and set back, while numpy's
BLAS reads the environment once, at import, and loses 20 times to threads on matrices this small.
"""

from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
import torch

from nvfp4.backends.cutedsl.emulator import ptx
from nvfp4.backends.cutedsl.emulator.accesses import cta_at
from nvfp4.backends.cutedsl.emulator.descriptors import (
    InstructionDescriptor,
    chunks,
    instruction_descriptor,
    matrix_descriptor,
)
from nvfp4.backends.cutedsl.emulator.hazards import Event, Hazard, Kind
from nvfp4.backends.cutedsl.emulator.lanes import Loading, pick, spread, uniform
from nvfp4.backends.cutedsl.emulator.memory import RANK_SHIFT
from nvfp4.backends.cutedsl.emulator.program import BLOCKED, Decoder, Modifiers, Program, Step
from nvfp4.backends.cutedsl.emulator.sync import mbarrier_at

_K = 64  # elements of K in one MMA
_GROUP = 16  # of them under one scale
_ALL_QUARTERS = slice(None)

_E2M1 = np.array([0, 0.5, 1, 1.5, 2, 3, 4, 6, -0.0, -0.5, -1, -1.5, -2, -3, -4, -6])
_E2M1_PAIRS = np.stack([_E2M1[np.arange(256) & 15], _E2M1[np.arange(256) >> 4]], 1)
"""A byte's two elements: the low nibble comes first."""


def _e4m3(code: int) -> float:
    """UE4M3: the sign bit does not count; the top code is NaN."""
    exponent, mantissa = code >> 3 & 15, code & 7
    if code & 127 == 127:
        return float("nan")
    return (mantissa / 8 if not exponent else 1 + mantissa / 8) * 2.0 ** (max(exponent, 1) - 7)


_E4M3 = np.array([_e4m3(code) for code in range(256)])
_E8M0 = np.array([2.0 ** (code - 127) for code in range(255)] + [float("nan")])


class TensorPipe:
    """The order in which a CTA's tensor core works."""

    def __init__(self, machine: Any) -> None:
        self._machine = machine
        self._last = 0

    def issue(self, warp: Any, instruction: ptx.Instruction, work: Callable[[], None]) -> None:
        machine = self._machine
        self._last = max(self._last, machine.time + machine.delay())

        def run() -> None:
            try:
                work()
            except Hazard as hazard:
                raise hazard.at(instruction.line, instruction.text, warp.where) from None

        machine.at(self._last, run)


def _same_group(warp: Any, group: int) -> None:
    """All tcgen05 instructions of a kernel have the same .cta_group."""
    if warp.cluster.cta_group not in (0, group):
        raise Hazard(Kind.CTA_GROUP, f"cta_group::{group} after ::{warp.cluster.cta_group}")
    warp.cluster.cta_group = group


def _ctas(warp: Any, group: int) -> list[Any]:
    """The CTAs that an instruction with .cta_group works in, the even rank first."""
    _same_group(warp, group)
    if group == 1:
        return [warp.cta]
    first = warp.cta.rank & ~1
    if first + 2 > len(warp.cluster.ctas):
        raise Hazard(Kind.CTA_GROUP, "cta_group::2 without a second CTA in the cluster")
    pair = warp.cluster.ctas[first : first + 2]
    for cta in pair:
        if cta.exited:
            raise Hazard(Kind.EXITED, f"cta_group::2 with CTA {cta.index}, which has exited")
    return pair


def _issue_event(warp: Any, instruction: ptx.Instruction) -> tuple[int, int]:
    """(event, what it has observed) of tensor core work: that of a warp between two commits is one
    event, and knows all that the warp issued before.
    """
    if warp.mask & (warp.mask - 1):
        raise Hazard(
            Kind.MANY_LANES, f"{warp.mask.bit_count()} lanes issue this; one of them is meant to"
        )
    if not warp.batch:
        event = Event("tensor core work from here on", instruction.line, warp.where)
        warp.batch = warp.cluster.events.new(event)
        warp.pipe_seen |= 1 << warp.batch
    warp.pipe_seen |= warp.seen
    return warp.batch, warp.pipe_seen


def _decode_tcgen05(instruction: ptx.Instruction, program: Program) -> Step:
    name, *_ = instruction.modifiers
    if name not in _OPERATIONS:
        raise instruction.unsupported(f"tcgen05.{name} is not known")
    return _OPERATIONS[name](instruction, program, Modifiers(instruction, name))


def _group(modifiers: Modifiers) -> int:
    return int(modifiers.need("cta_group::1", "cta_group::2")[-1])


def _alloc(instruction: ptx.Instruction, program: Program, modifiers: Modifiers) -> Step:
    group = _group(modifiers)
    for name in ("sync", "aligned", "shared::cta", "b32"):
        modifiers.need(name)
    modifiers.done()
    base, offset = program.address(instruction.operands[0])
    count = program.source(instruction.operands[1], 32)
    key = object()

    def step(warp: Any) -> int | None:
        if (blocked := warp.converge()) is not None:
            return blocked
        memories = [cta.tensor for cta in _ctas(warp, group)]
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
    """Serves the same request of all these CTAs at once, or none."""
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


def _dealloc(instruction: ptx.Instruction, program: Program, modifiers: Modifiers) -> Step:
    group = _group(modifiers)
    for name in ("sync", "aligned", "b32"):
        modifiers.need(name)
    modifiers.done()
    address, count = (program.source(operand, 32) for operand in instruction.operands)

    def step(warp: Any) -> int | None:
        if (blocked := warp.converge()) is not None:
            return blocked
        _same_group(warp, group)  # the peer may have freed its own and exited
        at = pick(warp.registers[address], warp.mask)
        warp.cta.tensor.free(at, pick(warp.registers[count], warp.mask), warp.seen)
        return None

    return step


def _relinquish(instruction: ptx.Instruction, program: Program, modifiers: Modifiers) -> Step:
    group = _group(modifiers)
    for name in ("sync", "aligned"):
        modifiers.need(name)
    modifiers.done()

    def step(warp: Any) -> int | None:
        if (blocked := warp.converge()) is not None:
            return blocked
        _same_group(warp, group)
        warp.cta.tensor.relinquished = True
        return None

    return step


def _wait(instruction: ptx.Instruction, program: Program, modifiers: Modifiers) -> Step:
    """tcgen05.wait::ld: the registers have their values. ::st: stores end at once here."""
    modifiers.need("sync")
    modifiers.need("aligned")
    modifiers.done()
    loads = instruction.modifiers[0] == "wait::ld"

    def step(warp: Any) -> int | None:
        if (blocked := warp.converge()) is not None:
            return blocked
        if loads and warp.loading:
            for slot, value in warp.loading:
                if warp.registers[slot] is value:
                    warp.registers[slot] = value.value
            warp.loading = []
        return None

    return step


def _fence(instruction: ptx.Instruction, program: Program, modifiers: Modifiers) -> Step:
    """tcgen05.fence: orders what here is ordered anyway, tensor memory accesses around barriers."""
    modifiers.done()
    return lambda warp: None


def _commit(instruction: ptx.Instruction, program: Program, modifiers: Modifiers) -> Step:
    group = _group(modifiers)
    modifiers.need("mbarrier::arrive::one")
    modifiers.take("shared::cluster")
    multicast = bool(modifiers.take("multicast::cluster"))
    modifiers.need("b64")
    modifiers.done()
    base, offset = program.address(instruction.operands[0])
    mask = program.source(instruction.operands[1], 16) if multicast else None

    def step(warp: Any) -> None:
        _ctas(warp, group)
        _, seen = _issue_event(warp, instruction)
        warp.batch = 0
        address = pick(warp.registers[base], warp.mask) + offset
        targets = [address]
        if mask is not None:
            lanes = pick(warp.registers[mask], warp.mask)
            if not lanes or lanes >> len(warp.cluster.ctas):
                raise Hazard(Kind.OUT_OF_BOUNDS, f"CTA mask {lanes:#b} in this cluster")
            low = address & (1 << RANK_SHIFT) - 1
            targets = [r << RANK_SHIFT | low for r in range(16) if lanes >> r & 1]
        warp.machine.counts["commits"] += 1
        barriers = [(mbarrier_at(warp, target), cta_at(warp, target)[0]) for target in targets]

        def arrive() -> None:
            for barrier, cta in barriers:
                if cta.exited:
                    raise Hazard(Kind.EXITED, f"a commit to CTA {cta.index}, which has exited")
                barrier.arrive(1, 0, seen, 0)

        warp.cta.pipe.issue(warp, instruction, arrive)

    return step


def _cp(instruction: ptx.Instruction, program: Program, modifiers: Modifiers) -> Step:
    """32x128b.warpx4: 32 rows of 16 bytes to lanes r, r + 32, r + 64, r + 96 of 4 columns."""
    group = _group(modifiers)
    modifiers.need("32x128b")
    modifiers.need("warpx4")
    modifiers.done()
    to, to_offset = program.address(instruction.operands[0])
    source = program.source(instruction.operands[1], 64)

    def step(warp: Any) -> None:
        machine, registers = warp.machine, warp.registers
        event, seen = _issue_event(warp, instruction)
        where = matrix_descriptor(pick(registers[source], warp.mask))
        rows = chunks(where, 32, 1)[:, 0]
        address = pick(registers[to], warp.mask) + to_offset
        if address >> 16:
            raise Hazard(Kind.TMEM, f"address {address:#x}: a copy to all quarters is to lane 0")
        ctas = _ctas(warp, group)
        machine.counts["tensor copies"] += 1
        for cta in ctas:
            cta.shared.bound(int(rows.min()) * 16, int(rows.max()) * 16 + 16)
            columns = cta.tensor.region(address, 4)
            if machine.options.check:
                cta.shared.chunk_shadow.read(rows, event, seen, warp.fenced)
                cta.tensor.shadow.write((_ALL_QUARTERS, columns), event, seen)

        def work() -> None:
            for cta in ctas:
                data = cta.shared.bytes.chunks[rows].view(np.uint32)
                cta.tensor.words.reshape(4, 32, -1)[:, :, columns] = data

        warp.cta.pipe.issue(warp, instruction, work)

    return step


def _mma(instruction: ptx.Instruction, program: Program, modifiers: Modifiers) -> Step:
    group = _group(modifiers)
    modifiers.need("kind::mxf4nvf4")
    modifiers.need("block_scale")
    modifiers.need("block16", "scale_vec::4X")
    modifiers.take(*(f"collector::a::{use}" for use in ("discard", "fill", "use", "lastuse")))
    modifiers.done()
    d, a, b, description, scale_a, scale_b, enable = instruction.operands
    d_base, d_offset = program.address(d)
    a_slot, b_slot = program.source(a, 64), program.source(b, 64)
    description_slot = program.source(description, 32)
    (sa_base, sa_offset), (sb_base, sb_offset) = program.address(scale_a), program.address(scale_b)
    accumulate_slot, flip = program.predicate(enable)

    def step(warp: Any) -> None:
        machine, registers, mask = warp.machine, warp.registers, warp.mask
        event, seen = _issue_event(warp, instruction)
        ctas = _ctas(warp, group)
        shape = instruction_descriptor(pick(registers[description_slot], mask))
        _check_shape(shape, group)
        rows_b = shape.n // group
        a_rows = chunks(matrix_descriptor(pick(registers[a_slot], mask)), 128, 2)
        b_rows = chunks(matrix_descriptor(pick(registers[b_slot], mask)), rows_b, 2)
        accumulate = bool((registers[accumulate_slot] ^ flip) & mask)
        to = pick(registers[d_base], mask) + d_offset
        sa = pick(registers[sa_base], mask) + sa_offset
        sb = pick(registers[sb_base], mask) + sb_offset
        if (to | sa | sb) >> 16:
            raise Hazard(Kind.TMEM, f"addresses {to:#x}, {sa:#x}, {sb:#x}: an MMA begins at lane 0")
        columns_b = -(-shape.n // 32)
        for cta in ctas:
            into = cta.tensor.region(to, shape.n)
            scales_a = cta.tensor.region(sa, 4)
            scales_b = cta.tensor.region(sb, columns_b)
            for rows in (a_rows, b_rows):
                cta.shared.bound(int(rows.min()) * 16, int(rows.max()) * 16 + 16)
                if machine.options.check:
                    cta.shared.chunk_shadow.read(rows, event, seen, warp.fenced)
            if machine.options.check:
                shadow = cta.tensor.shadow
                for columns in (scales_a, scales_b, *((into,) if accumulate else ())):
                    shadow.read((_ALL_QUARTERS, columns), event, seen)
                shadow.write((_ALL_QUARTERS, into), event, seen)
        machine.counts["mma"] += 1

        def work() -> None:
            codes_b = np.concatenate([cta.shared.bytes.chunks[b_rows] for cta in ctas])
            for cta in ctas:
                words = cta.tensor.words
                table = _E8M0 if shape.scale_is_e8m0 else _E4M3
                factors_a = _scales(words, scales_a, 128, table)
                factors_b = _scales(words, scales_b, shape.n, table)
                left = _dequantize(cta.shared.bytes.chunks[a_rows], factors_a, shape.negate_a)
                right = _dequantize(codes_b, factors_b, shape.negate_b)
                product = torch.mm(torch.from_numpy(left), torch.from_numpy(right).T).numpy()
                if accumulate:
                    product += words[:, into].view(np.float32)
                words[:, into] = product.astype(np.float32).view(np.uint32)

        warp.cta.pipe.issue(warp, instruction, work)

    return step


def _check_shape(shape: InstructionDescriptor, group: int) -> None:
    if shape.m != 128 * group or not shape.n or shape.n > 256 or shape.n % (8 * group):
        raise Hazard(
            Kind.DESCRIPTOR, f"no {shape.m} x {shape.n} block-scaled MMA in cta_group::{group}"
        )


def _scales(words: np.ndarray, columns: slice, rows: int, table: np.ndarray) -> np.ndarray:
    """[rows, 4] scale factors: those of row r are the bytes of lane r % 32, column r // 32."""
    quarters = words[:, columns].reshape(4, 32, -1)
    if not (quarters == quarters[0]).all():
        raise Hazard(Kind.TMEM, "scale factors differ between the 32-lane quarters")
    codes = np.ascontiguousarray(quarters[0].T).reshape(-1).view(np.uint8)
    return table[codes[: 4 * rows]].reshape(rows, 4)


def _dequantize(codes: np.ndarray, scales: np.ndarray, negate: bool) -> np.ndarray:
    """[rows, 64] values of rows of 32 bytes and their scales: exact in float64."""
    rows = len(codes)
    values = _E2M1_PAIRS[codes.view(np.uint8).reshape(rows, -1)].reshape(rows, _K // _GROUP, _GROUP)
    values *= scales[:, :, None]
    return -values.reshape(rows, _K) if negate else values.reshape(rows, _K)


def _ld(instruction: ptx.Instruction, program: Program, modifiers: Modifiers) -> Step:
    """32x32b.xN: thread i of warp w reads N columns of lane 32 * (w % 4) + i.

    16x256b.xN, of 16 lanes and 8 N columns: for each 8 columns, thread i has columns 2 (i % 4) and
    the next of lane i / 4, then of lane i / 4 + 8 (PTX ISA, "tcgen05 matrix fragment .16x256b").
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
    puts = [program.put(item, 32) for item in items]
    slots = [program.result(item, 32) for item in items if not isinstance(item, ptx.Sink)]
    base, offset = program.address(address)

    def step(warp: Any) -> int | None:
        if (blocked := warp.converge()) is not None:
            return blocked
        first, where = _columns(warp, base, offset, columns, lanes)
        if warp.machine.options.check:
            event = warp.event(instruction)
            warp.cta.tensor.shadow.read((first // 32, where), event, warp.seen)
        block = warp.cta.tensor.words[first : first + lanes, where]
        if lanes == 16:
            # [high row, row, group, pair, column] -> a register of each group, row half, column
            parts = block.reshape(2, 8, repeat, 4, 2).transpose(2, 0, 4, 1, 3)
            block = parts.reshape(count, 32)
        else:
            block = block.T.copy()
        for put, row in zip(puts, block, strict=True):
            put(warp, row)
        if warp.machine.tmem_load_waits:
            for slot in slots:
                value = Loading(warp.registers[slot], instruction.line)
                warp.registers[slot] = value
                warp.loading.append((slot, value))
        return None

    return step


def _st(instruction: ptx.Instruction, program: Program, modifiers: Modifiers) -> Step:
    count = _shape(modifiers, "32x32b")
    address, values = instruction.operands
    items = values.items if isinstance(values, ptx.Vector) else (values,)
    if len(items) != count:
        raise instruction.unsupported(f"{len(items)} registers for {count} columns")
    slots = [program.source(item, 32) for item in items]
    base, offset = program.address(address)

    def step(warp: Any) -> int | None:
        if (blocked := warp.converge()) is not None:
            return blocked
        first, columns = _columns(warp, base, offset, count, 32)
        if warp.machine.options.check:
            event = warp.event(instruction)
            warp.cta.tensor.shadow.write((first // 32, columns), event, warp.seen)
        lanes = slice(first, first + 32)
        block = np.stack([spread(warp.registers[slot], 32) for slot in slots], 1)
        warp.cta.tensor.words[lanes, columns] = block
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
    """The first lane and the columns of an access to `lanes` lanes, of the warp's own 32."""
    address = uniform(warp.registers[base], warp.mask)
    if address is None:
        raise Hazard(Kind.MANY_LANES, "the lanes differ in the address")
    address += offset
    first, own = address >> 16, 32 * (warp.index % 4)
    if first % lanes or not own <= first < own + 32:
        may = f"{lanes} lanes from {own} to {own + 31}"
        raise Hazard(Kind.TMEM, f"warp {warp.index} may access {may}, not lane {first} on")
    return first, warp.cta.tensor.region(address, count)


_OPERATIONS: Mapping[str, Callable[[ptx.Instruction, Program, Modifiers], Step]] = {
    "alloc": _alloc,
    "dealloc": _dealloc,
    "relinquish_alloc_permit": _relinquish,
    "commit": _commit,
    "cp": _cp,
    "mma": _mma,
    "ld": _ld,
    "st": _st,
    "wait::ld": _wait,
    "wait::st": _wait,
    "fence::before_thread_sync": _fence,
    "fence::after_thread_sync": _fence,
}

DECODERS: Mapping[str, Decoder] = {"tcgen05": _decode_tcgen05}
