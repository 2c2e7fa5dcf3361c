"""Records: what the engine does for an instruction, over slots (engine.c)."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from enum import IntEnum
from typing import NamedTuple

import numpy as np

from nvfp4.emulator.engine.registers import ALWAYS, Layout


class Does(IntEnum):
    """What the engine does with a record."""

    PYTHON = 0  # nothing: Python runs the instruction
    VALUE = 1
    TEST = 2
    LOGIC = 3
    SELECT = 4
    BRANCH = 5
    SHUFFLE = 6
    MULTIPLY = 7
    LOAD = 8
    STORE = 9
    LOAD_MATRIX = 10
    STORE_MATRIX = 11


COMBINE: Mapping[str, int] = {"": 0, "and": 1, "or": 2, "xor": 3}
"""How a predicate combines with another, as a record's immediate says it."""


@dataclass(frozen=True, slots=True)
class Record:
    """One operation on slots. `flips` negates the predicates among the sources, or the second."""

    does: Does
    operation: int = 0
    to: int = ALWAYS
    sources: tuple[int, ...] = ()
    immediate: int = 0
    other: int | None = None
    """The slot of a second result."""
    flips: tuple[int, int] = (0, 0)
    elements: tuple[int, ...] = ()
    """The registers of an MMA, or those that an access to memory reads or writes."""
    guard: int | None = None
    guard_flip: int = 0

    def guarded(self, predicate: int, flip: int) -> "Record":
        return replace(self, guard=predicate, guard_flip=flip)


class Packed(NamedTuple):
    """A program's records as C reads them."""

    records: np.ndarray
    starts: np.ndarray
    """The first record of each instruction."""
    elements: np.ndarray
    """The registers of accesses to memory."""
    compiled: Sequence[bool]
    """Whether the engine runs an instruction; its step then runs where the engine cannot."""


_WORDS = 22
"""The 32-bit words of a record in engine.c."""


def packed(programs: Sequence[Sequence[Record]], layout: Layout) -> Packed:
    """Lay out the records of each instruction for C."""
    rows: list[list[int]] = []
    elements: list[int] = []
    starts: list[int] = []
    for pc, records in enumerate(programs):
        starts.append(len(rows))
        for record in records or (Record(Does.PYTHON),):
            if record.elements:
                record = replace(record, operation=len(elements))
                for slot in record.elements:
                    elements += (layout.places[slot], slot, layout.bits[slot] // 8)
            rows.append(_row(pc, record, layout))
    words = np.array(rows, np.int64).astype(np.uint32).view(np.int32)
    assert words.shape[1] == _WORDS
    return Packed(
        words,
        np.array(starts, np.int32),
        np.array([*elements, 0], np.int32),
        [bool(records) for records in programs],
    )


def _row(pc: int, record: Record, layout: Layout) -> list[int]:
    places = layout.places
    sources = (*record.sources, *(ALWAYS,) * (4 - len(record.sources)))
    guard, other = record.guard, record.other
    return [
        record.does, record.operation, pc, record.immediate & 0xFFFFFFFF,
        places[record.to], record.to, max(1, layout.bits[record.to] // 8),
        *(places[source] for source in sources), *sources,
        *((-1, 0) if guard is None else (places[guard], guard)), record.guard_flip,
        *((-1, 0) if other is None else (places[other], other)),
        *record.flips,
    ]  # fmt: skip
