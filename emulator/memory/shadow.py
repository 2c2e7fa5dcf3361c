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

import numpy as np

from nvfp4.emulator.hazards import Event, Hazard, Kind

Index = slice | np.ndarray | tuple[slice | int | np.ndarray, ...]

NEVER = 0
"""The writer of a byte that was never written; no event has this number."""
MBARRIER = -1
"""The writer of an mbarrier's own bytes, which only mbarrier instructions may touch."""


class Events:
    """The events of a cluster, numbered from 1."""

    def __init__(self) -> None:
        self._log: list[Event] = [Event("nothing", 0, "")]
        self.generic = 0  # the events that are ordinary loads and stores (the generic proxy)
        self.atomic = 0  # the events that are atomics, which may race with one another
        self._groups: list[int] = [0]
        self._group_numbers: dict[int, int] = {0: 0}

    def new(self, event: Event, generic: bool = False) -> int:
        number = len(self._log)
        self._log.append(event)
        if generic:
            self.generic |= 1 << number
        return number

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
        self.writer = np.zeros(shape, np.int32)  # an event
        self.readers = np.zeros(shape, np.int32)  # the number of a group of events
        self._events = events
        self._name = name

    def reshaped(self, shape: tuple[int, ...], name: Callable[[Index, int], str]) -> "Shadow":
        """View this shadow under other indices."""
        other = Shadow((0,), self._events, name)
        other.writer, other.readers = self.writer.reshape(shape), self.readers.reshape(shape)
        return other

    def _fault(self, kind: Kind, index: Index, cells: np.ndarray, value: int, what: str) -> Hazard:
        where = self._name(index, int(np.argmax(cells.ravel() == value)))
        return Hazard(kind, f"{where} {what}")

    def _check_writer(self, index: Index, seen: int, fenced: int | None, reading: bool) -> None:
        cells = self.writer[index]
        for event in _distinct(cells):
            if event == NEVER:
                if reading:
                    raise self._fault(
                        Kind.UNINITIALISED, index, cells, event, "is read but was never written"
                    )
            elif event == MBARRIER:
                raise self._fault(Kind.MBARRIER, index, cells, event, "belongs to an mbarrier")
            elif not seen >> event & 1:
                kind = Kind.EARLY_READ if reading else Kind.OVERWRITE
                verb = "read" if reading else "overwritten"
                what = f"is {verb} without waiting for its writer: {self._events[event]}"
                raise self._fault(kind, index, cells, event, what)
            elif (
                fenced is not None and self._events.generic >> event & 1 and not fenced >> event & 1
            ):
                what = f"has no fence.proxy.async after its writer: {self._events[event]}"
                raise self._fault(Kind.PROXY, index, cells, event, what)

    def read(self, index: Index, event: int, seen: int, fenced: int | None = None) -> None:
        """Check and record a read by `event`, whose warp has observed `seen`.

        `fenced` are the generic writes behind a proxy fence, if the async proxy reads.
        """
        self._check_writer(index, seen, fenced, reading=True)
        cells = self.readers[index]
        groups = _distinct(cells)
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
        self._check_writer(index, seen, fenced, reading=False)
        self.check_readers(index, seen)
        self.writer[index] = event
        self.readers[index] = 0

    def atomic(self, index: Index, event: int, seen: int) -> None:
        """Check and record an atomic's read and write, which need not wait for other atomics."""
        self._check_writer(index, seen | self._events.atomic, None, reading=True)
        self.write(index, event, seen | self._events.atomic)

    def check_readers(self, index: Index, seen: int) -> None:
        cells = self.readers[index]
        for group in _distinct(cells):
            missing = self._events.group(group) & ~seen
            if missing:
                what = f"is overwritten without waiting for a reader: {self._events.first(missing)}"
                raise self._fault(Kind.OVERWRITE, index, cells, group, what)


def _distinct(cells: np.ndarray) -> list[int]:
    """Give the distinct values, ascending; the usual case of one value is cheap."""
    low, high = int(cells.min()), int(cells.max())
    if low == high:
        return [low]
    return (np.flatnonzero(np.bincount(cells.ravel() - low)) + low).tolist()
