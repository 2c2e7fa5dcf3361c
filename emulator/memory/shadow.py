"""The shadow of a memory: the last writer and the readers of each byte, as events.

An event is an access that others may have to wait for. It is an asynchronous transfer, a batch of
tensor core work, or a warp's ordinary loads and stores from one release to the next. Events have
numbers. What a warp has observed is a set of events, an int with a bit for each. The set grows when
the warp waits on a barrier, by the sets of those that arrived there.

An access is a fault if it conflicts with an event that its warp has not observed, even where the
bytes happen to be right. This is the happens-before order of PTX ISA's memory consistency model. It
shows a missing wait under every schedule.
"""

from collections.abc import Callable
from enum import IntEnum

import numpy as np

from nvfp4.emulator.engine.library import address, distinct
from nvfp4.emulator.engine.regions import Region, alike, fill, region
from nvfp4.emulator.hazards import Event, Hazard, Kind

Index = slice | np.ndarray | tuple[slice | int | np.ndarray, ...]

NEVER = 0
"""The writer of a byte that was never written; no event has this number."""
MBARRIER = -1
"""The writer of an mbarrier's own bytes, which only mbarrier instructions may touch."""


class Access(IntEnum):
    """What a warp itself accesses: fences and releases order some of it alone."""

    OWN_SHARED = 0
    """Shared memory of its own CTA (.shared::cta)."""
    PEER_SHARED = 1
    """Shared memory of another CTA of the cluster."""
    GLOBAL = 2
    TENSOR = 3
    """Tensor memory, by tcgen05.ld and st."""
    ATOMIC = 4
    """Any memory, by atomics, which may race with one another."""


class Events:
    """The events of a cluster, numbered from 1."""

    def __init__(self) -> None:
        self._log: list[Event] = [Event("nothing", 0, "")]
        self.generic = 0  # the events that are ordinary loads and stores (the generic proxy)
        self.of = [0] * len(Access)  # the events of each kind of access by a warp
        self.tensor = 0  # the events that access tensor memory
        self.always = 0  # the events that every arrival passes on (machine/passed.py)
        self.executed = 0  # those of them that say what has run: CTAs, waits, arrivals
        self._groups: list[int] = [0]
        self._group_numbers: dict[int, int] = {0: 0}

    def new(self, event: Event) -> int:
        self._log.append(event)
        return len(self._log) - 1

    def new_access(self, event: Event, access: Access) -> int:
        """Number a warp's own accesses of a kind."""
        number = self.new(event)
        self.of[access] |= 1 << number
        if access is Access.TENSOR:
            self.mark_tensor(number)
        else:
            self.generic |= 1 << number
        return number

    def new_executed(self, event: Event) -> int:
        """Number something that has run, and that later instructions follow."""
        number = self.new(event)
        self.executed |= 1 << number
        self.always |= 1 << number
        return number

    def mark_tensor(self, number: int) -> None:
        """Say that an event accesses tensor memory."""
        self.tensor |= 1 << number
        self.always |= 1 << number

    def __getitem__(self, number: int) -> Event:
        return self._log[number]

    def group(self, number: int) -> int:
        """Give the set of events that a group's number stands for."""
        return self._groups[number]

    def group_number(self, events: int) -> int:
        number = self._group_numbers.get(events)
        if number is None:
            number = self._group_numbers[events] = len(self._groups)
            self._groups.append(events)
        return number

    def group_after_read(self, group: int, event: int, seen: int) -> int:
        """Give the group that a read by `event` makes of a group of readers.

        A wait for this event is also a wait for all that its warp had observed.
        """
        return self.group_number(self.group(group) & ~seen | 1 << event)

    def first(self, events: int) -> Event:
        return self._log[(events & -events).bit_length() - 1]


class Shadow:
    """The last writer and the readers since then, of each cell of a memory."""

    def __init__(self, shape: tuple[int, ...], events: Events, name: Callable[[Index, int], str]):
        self._take(np.zeros(shape, np.int32), np.zeros(shape, np.int32))
        self._events = events
        self._name = name

    def _take(self, writer: np.ndarray, readers: np.ndarray) -> None:
        self.writer = writer  # an event
        self.readers = readers  # the number of a group of events
        self._writers, self._readers = address(writer), address(readers)

    def reshaped(self, shape: tuple[int, ...], name: Callable[[Index, int], str]) -> "Shadow":
        """View this shadow under other indices."""
        other = Shadow((0,), self._events, name)
        other._take(self.writer.reshape(shape), self.readers.reshape(shape))
        return other

    def _fault(self, kind: Kind, index: Index, cells: np.ndarray, value: int, what: str) -> Hazard:
        where = self._name(index, int(np.argmax(cells.ravel() == value)))
        return Hazard(kind, f"{where} {what}")

    def _check_writer(self, index: Index, seen: int, fenced: int | None, reading: bool) -> None:
        cells = self.writer[index]
        for event in distinct(cells):
            wrong = self._wrong_writer(event, seen, fenced, reading)
            if wrong is not None:
                kind, what = wrong
                raise self._fault(kind, index, cells, event, what)

    def _wrong_writer(
        self, event: int, seen: int, fenced: int | None, reading: bool
    ) -> tuple[Kind, str] | None:
        """Say what is wrong with an access to cells that an event wrote."""
        if event == NEVER:
            return (Kind.UNINITIALISED, "is read but was never written") if reading else None
        if event == MBARRIER:
            return Kind.MBARRIER, "belongs to an mbarrier"
        if not seen >> event & 1:
            verb = "read" if reading else "overwritten"
            what = f"is {verb} without waiting for its writer: {self._events[event]}"
            return Kind.EARLY_READ if reading else Kind.OVERWRITE, what
        if fenced is not None and self._events.generic >> event & 1 and not fenced >> event & 1:
            return Kind.PROXY, f"has no fence.proxy.async after its writer: {self._events[event]}"
        return None

    def _all(self, index: Index) -> tuple[Region, int, int] | None:
        """Give the region, its writer and its group of readers, if all its cells are alike."""
        where = region(index, self.writer.shape)
        if where is None or (both := alike(self._writers, self._readers, where)) is None:
            return None
        return where, *both

    def read(self, index: Index, event: int, seen: int, fenced: int | None = None) -> None:
        """Check and record a read by `event`, whose warp has observed `seen`.

        `fenced` are the generic writes behind a proxy fence, if the async proxy reads.
        """
        every = self._all(index)
        if every is not None:
            where, writer, group = every
            if self._wrong_writer(writer, seen, fenced, reading=True) is None:
                fill(self._readers, where, self._events.group_after_read(group, event, seen))
                return
        self._check_writer(index, seen, fenced, reading=True)
        self._add_reader(index, event, seen)

    def _other(self, group: int, seen: int) -> int:
        """Give the readers of a group that are not waited for and are no ordinary loads."""
        return self._events.group(group) & ~seen & ~self._events.generic

    def _add_reader(self, index: Index, event: int, seen: int) -> None:
        cells = self.readers[index]
        groups = distinct(cells)
        events = self._events
        new = [events.group_after_read(group, event, seen) for group in groups]
        if len(groups) == 1:
            self.readers[index] = new[0]
        else:
            table = np.zeros(groups[-1] - groups[0] + 1, np.int32)
            table[np.array(groups) - groups[0]] = new
            self.readers[index] = table[cells - groups[0]]

    def check(self, index: Index, seen: int) -> None:
        """Check that no event is left to wait for."""
        self._check_writer(index, seen, None, reading=False)
        self.check_readers(index, seen)

    def write(self, index: Index, event: int, seen: int, fenced: int | None = None) -> None:
        """Check and record a write by `event`, as read does a read."""
        every = self._all(index)
        if every is not None:
            where, writer, group = every
            wrong = self._wrong_writer(writer, seen, fenced, reading=False)
            if wrong is None and not self._events.group(group) & ~seen:
                fill(self._writers, where, event)
                fill(self._readers, where, 0)
                return
        self._check_writer(index, seen, fenced, reading=False)
        self.check_readers(index, seen)
        self.writer[index] = event
        self.readers[index] = 0

    def store(
        self, cells: np.ndarray, event: int, seen: int, unchanged: Callable[[], np.ndarray]
    ) -> None:
        """Check and record an ordinary store, as write does.

        Bytes that it leaves as another ordinary store made them need not wait for that store, nor
        for ordinary loads: compilers let several warps store the same values. Such a store counts
        as a load, since a store of something else has to wait for it. `unchanged` finds the bytes.
        """
        try:
            self.write(cells, event, seen)
        except Hazard:
            writers = self.writer[cells]
            generic = [e for e in distinct(writers) if e > 0 and self._events.generic >> e & 1]
            groups = [g for g in distinct(self.readers[cells]) if not self._other(g, seen)]
            same = np.isin(writers, generic) & np.isin(self.readers[cells], groups) & unchanged()
            if not same.any():
                raise
            if not same.all():
                self.write(cells[~same], event, seen)
            self._add_reader(cells[same], event, seen)

    def atomic(self, index: Index, event: int, seen: int) -> None:
        """Check and record an atomic's read and write, which need not wait for other atomics."""
        self._check_writer(index, seen | self._events.of[Access.ATOMIC], None, reading=True)
        self.write(index, event, seen | self._events.of[Access.ATOMIC])

    def check_readers(self, index: Index, seen: int) -> None:
        cells = self.readers[index]
        for group in distinct(cells):
            missing = self._events.group(group) & ~seen
            if missing:
                what = f"is overwritten without waiting for a reader: {self._events.first(missing)}"
                raise self._fault(Kind.OVERWRITE, index, cells, group, what)
