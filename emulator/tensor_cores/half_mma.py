"""MMAs of float16 and bfloat16 (PTX ISA: tcgen05.mma, kind::f16) in one CTA.

A comes from shared memory or from tensor memory, where a column of 32 bits holds two elements along
K. Products and sums are computed in float64, and the accumulator is added last, as in mma.py.
Rows of an M of 64 are in lanes 0 to 15 of each quarter, or in 16 to 31 if the address says so.
"""

from collections.abc import Mapping
from functools import lru_cache
from typing import Any, NamedTuple

import numpy as np

from nvfp4.emulator import ptx
from nvfp4.emulator.hazards import Hazard, Kind, Unsupported
from nvfp4.emulator.isa.builder import Builder, Operation
from nvfp4.emulator.isa.modifiers import Modifiers
from nvfp4.emulator.lanes import pick
from nvfp4.emulator.machine.program import Step
from nvfp4.emulator.machine.tensor_pipe import issue_event
from nvfp4.emulator.tensor_cores import wgmma_operands
from nvfp4.emulator.tensor_cores.cta_groups import group_of, pair_of
from nvfp4.emulator.tensor_cores.descriptors import matrix_descriptor
from nvfp4.emulator.tensor_cores.elements import DECODE

_ROW_BYTES = 32  # of A and B along K: 16 elements
_A_COLUMNS = 8  # of A in tensor memory
_ALL_QUARTERS = slice(None)


class _Shape(NamedTuple):
    """The shape and options of an MMA, from its instruction descriptor."""

    m: int
    n: int
    types: tuple[str, str]
    negate: bool
    mn_major: tuple[bool, bool]


@lru_cache(maxsize=256)
def _shape(bits: int) -> _Shape:
    where = f"instruction descriptor {bits:#010x}"
    types = bits >> 7 & 7, bits >> 10 & 7
    if max(types) > 1 or bits & 3 or bits >> 3 & 1 or bits >> 6 & 1 or bits >> 23 & 1:
        raise Hazard(Kind.DESCRIPTOR, f"{where}: not one of kind::f16")
    if bits >> 4 & 3 != 1 or bits >> 2 & 1 or bits >> 30:
        raise Unsupported(f"{where}: sparse, shifted, or an accumulator that is not float32")
    m, n = (bits >> 24 & 31) * 16, (bits >> 17 & 63) * 8
    if m not in (64, 128) or not 8 <= n <= 256 or n % (8 if m == 64 else 16):
        raise Hazard(Kind.DESCRIPTOR, f"no {m} x {n} MMA in cta_group::1")
    names = ("f16", "bf16")
    return _Shape(
        m=m,
        n=n,
        types=(names[types[0]], names[types[1]]),
        negate=bool(bits >> 13 & 1) != bool(bits >> 14 & 1),
        mn_major=(bool(bits >> 15 & 1), bool(bits >> 16 & 1)),
    )


def _rows(m: int, lane: int) -> np.ndarray:
    """Give the lanes of an MMA's rows, whose address begins at a lane."""
    if lane not in ((0, 16) if m == 64 else (0,)):
        raise Hazard(Kind.TMEM, f"an MMA of {m} rows at lane {lane}")
    row = np.arange(m)
    return row if m == 128 else row // 16 * 32 + row % 16 + lane


def decode(instruction: ptx.Instruction, builder: Builder, modifiers: Modifiers) -> Step:
    """Decode tcgen05.mma.kind::f16 of one CTA."""
    modifiers.need("kind::f16")
    if group_of(modifiers) != 1:
        raise instruction.unsupported("only of one CTA")
    modifiers.take(*(f"collector::a::{use}" for use in ("discard", "fill", "use", "lastuse")))
    modifiers.done()
    d, a, b, description, enable = instruction.operands
    d_base, d_offset = builder.address(d)
    a_base, a_offset = builder.address(a) if isinstance(a, ptx.Address) else (0, 0)
    a_slot = None if isinstance(a, ptx.Address) else builder.source(a, 64)
    b_slot, description_slot = builder.source(b, 64), builder.source(description, 32)
    accumulate_slot, flip = builder.predicate(enable)

    def step(warp: Any) -> None:
        machine, registers, mask = warp.machine, warp.registers, warp.mask
        shape = _shape(pick(registers[description_slot], mask))
        to = pick(registers[d_base], mask) + d_offset
        event, seen = issue_event(warp, instruction, "mma", (to, shape))
        (cta,) = pair_of(warp, 1)
        accumulate = bool((registers[accumulate_slot] ^ flip) & mask)
        rows, into = _rows(shape.m, to >> 16), cta.tensor.region(to, shape.n)
        where_b = _chunks(pick(registers[b_slot], mask), shape.n, shape.mn_major[1])
        shared = [where_b]
        source, where_a = None, None
        if a_slot is None:
            address = pick(registers[a_base], mask) + a_offset
            if address >> 16 != to >> 16:
                raise Hazard(Kind.TMEM, "A and the accumulator begin at different lanes")
            source = cta.tensor.region(address, _A_COLUMNS)
        else:
            where_a = _chunks(pick(registers[a_slot], mask), shape.m, shape.mn_major[0])
            shared.append(where_a)
        for chunks in shared:
            cta.shared.bound(int(chunks.min()) * 16, int(chunks.max()) * 16 + 16)
            if machine.options.check:
                cta.shared.chunk_shadow.read(chunks, event, seen, warp.fenced)
        if machine.options.check:
            shadow = cta.tensor.shadow
            for columns in (*((source,) if source else ()), *((into,) if accumulate else ())):
                shadow.read((_ALL_QUARTERS, columns), event, seen)
            shadow.write((_ALL_QUARTERS, into), event, seen)
        machine.counts["mma"] += 1

        def work() -> None:
            words = cta.tensor.words
            if source is None:
                left = wgmma_operands.codes(cta.shared.bytes.chunks[where_a], 16, shape.mn_major[0])
            else:
                left = np.ascontiguousarray(words[rows, source]).view(np.uint16)
            right = wgmma_operands.codes(cta.shared.bytes.chunks[where_b], 16, shape.mn_major[1])
            with np.errstate(all="ignore"):
                values = (
                    DECODE[kind][1](c) for kind, c in zip(shape.types, (left, right), strict=True)
                )
                x, y = values
                product = x.dot(y.T)
                if shape.negate:
                    product = -product
                if accumulate:
                    product = product + words[rows, into].view(np.float32)
                words[rows, into] = product.astype(np.float32).view(np.uint32)

        cta.pipe.issue(warp, instruction, work)

    return step


def _chunks(bits: int, rows: int, mn_major: bool) -> np.ndarray:
    """Give the 16-byte chunks of A or B, whose layouts are those of wgmma."""
    matrix = wgmma_operands.Descriptor(*matrix_descriptor(bits))
    return wgmma_operands.chunks(matrix, rows, _ROW_BYTES, mn_major)


OPERATIONS: Mapping[str, Operation] = {"kind::f16": decode}
"""The MMAs that are not block-scaled, by their kind."""
