"""The registers of a warp: one array, in which each slot has its place."""

from collections.abc import Iterable, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np

from nvfp4.emulator.engine import library
from nvfp4.emulator.engine.library import address
from nvfp4.emulator.hazards import Hazard, Kind
from nvfp4.emulator.lanes import DTYPES, LANES, Value, flags, spread, undefined

ALWAYS = 0
"""A slot that always has a value, for records with fewer sources than they could have."""

_NEVER, _WRITTEN, _LOADING = range(3)
"""What a slot holds: no value yet, a value, or one that nothing may use before a wait."""


class Loading(NamedTuple):
    """The instruction that still brings registers their values; each has one of its own."""

    line: int
    what: str = "tcgen05.ld"
    wait: str = "tcgen05.wait::ld (Options.tmem_load_waits)"

    @property
    def why(self) -> str:
        return f"a register of the {self.what} in PTX line {self.line} is used without {self.wait}"


class Layout:
    """The places of a program's slots, in bytes; constants stand first.

    A predicate has 4 bytes, one bit a lane. Every other slot has 32 lanes of its size.
    """

    def __init__(self, bits: Sequence[int], constants: Mapping[int, int], filled: Iterable[int]):
        self.bits = bits
        self.filled = [ALWAYS, *constants, *filled]
        places = [0] * len(bits)
        end = 0
        first = set(self.filled)
        order = sorted(range(len(bits)), key=lambda slot: slot not in first)
        for slot in order:
            size = 4 if bits[slot] == 1 else LANES * bits[slot] // 8
            end = -(-end // min(size, 32)) * min(size, 32)
            places[slot] = end
            end += size
        self.places: Sequence[int] = places
        self.size = -(-end // 64) * 64
        sizes = [4 if n == 1 else n // 8 for n in bits]
        self.items = [place // size for place, size in zip(places, sizes, strict=True)]
        """The place of each slot among items of its own size."""
        self.states = np.zeros(len(bits), np.uint8)
        self.states[self.filled] = _WRITTEN
        self.template = np.zeros(0, np.uint8)
        template = Registers(self)
        for slot in self.filled:
            template[slot] = constants.get(slot, 0)
        self._groups: dict[tuple[int, ...], tuple[int, np.ndarray]] = {}
        self.template = template.file[: self._end_of_constants()].copy()

    def group(self, slots: tuple[int, ...]) -> int:
        """Give the address of the places of some slots of 32 bits, and then the slots."""
        group = self._groups.get(slots)
        if group is None:
            assert all(self.bits[slot] == 32 for slot in slots), slots
            places = [self.places[slot] for slot in slots]
            array = np.array([*places, *slots], np.int32)
            group = self._groups[slots] = address(array), array
        return group[0]

    def _end_of_constants(self) -> int:
        return max(self.places[s] + max(4, LANES * self.bits[s] // 8) for s in self.filled)


class Registers:
    """A warp's registers by slot.

    Reading gives an int for a predicate, one bit a lane, and an array of 32 lanes for the others.
    Reading a register without a value is a hazard.
    """

    __slots__ = ("_bits", "_items", "_layout", "_views", "file", "loading", "pointers", "states")

    def __init__(self, layout: Layout) -> None:
        self._layout, self._bits, self._items = layout, layout.bits, layout.items
        self.file = np.empty(layout.size, np.uint8)
        self.states = layout.states.copy()
        self.file[: len(layout.template)] = layout.template
        self.pointers = address(self.file), address(self.states)
        self.loading: dict[int, Loading] = {}
        self._views: dict[int, np.ndarray] = {n: self.file.view(DTYPES[n]) for n in DTYPES}
        self._views[1] = self._views[32]

    def __getitem__(self, slot: int) -> Any:
        if self.states[slot] != _WRITTEN:
            raise self.missing(slot)
        bits, at = self._bits[slot], self._items[slot]
        if bits == 1:
            return int(self._views[1][at])
        return self._views[bits][at : at + LANES].copy()

    def __setitem__(self, slot: int, value: Value) -> None:
        bits, at = self._bits[slot], self._items[slot]
        if bits == 1:
            self._views[1][at] = value
        elif value.__class__ is int:
            self._views[bits][at : at + LANES] = value & ((1 << bits) - 1)
        else:
            self._views[bits][at : at + LANES] = value
        self.states[slot] = _WRITTEN

    def put(self, slot: int, value: Value, lanes: int) -> None:
        """Write a register in some lanes; the others keep their values, or have undefined ones."""
        if self.states[slot] == _LOADING:
            raise self.missing(slot)
        never = self.states[slot] == _NEVER
        bits, at = self._bits[slot], self._items[slot]
        if bits == 1:
            before = 0 if never else int(self._views[1][at])
            self._views[1][at] = before & ~lanes | int(value) & lanes
        else:
            old = self._views[bits][at : at + LANES]
            if never:
                old[:] = undefined(bits)
            np.copyto(old, spread(value, bits), where=flags(lanes))
        self.states[slot] = _WRITTEN

    def rows(self, slots: tuple[int, ...]) -> np.ndarray:
        """Read registers of 32 bits as [registers, lanes]."""
        words = np.empty((len(slots), LANES), np.uint32)
        group = self._layout.group(slots)
        bad = library.get_rows()(*self.pointers, group, len(slots), address(words))
        if bad >= 0:
            raise self.missing(slots[bad])
        return words

    def set_rows(self, slots: tuple[int, ...], words: np.ndarray) -> None:
        """Write registers of 32 bits in all lanes, from [registers, lanes]."""
        words = np.ascontiguousarray(words, np.uint32)
        assert words.shape == (len(slots), LANES), words.shape
        group = self._layout.group(slots)
        library.set_rows()(*self.pointers, group, len(slots), address(words))

    def content(self, slot: int) -> np.ndarray | Loading | None:
        """Give a register's value, or what brings it; None if it was never written."""
        state = self.states[slot]
        return self[slot] if state == _WRITTEN else None if state == _NEVER else self.loading[slot]

    def coming(self, slot: int) -> np.ndarray:
        """Give the value that a register will have when what brings it has ended."""
        at = self._items[slot]
        return self._views[self._bits[slot]][at : at + LANES].copy()

    def missing(self, slot: int) -> Hazard:
        """Say why a register has no value that can be used."""
        if self.states[slot] == _LOADING:
            return Hazard(Kind.EARLY_READ, self.loading[slot].why)
        return Hazard(Kind.UNINITIALISED, "a register is read that was never written")

    def has_value(self, slot: int) -> bool:
        return bool(self.states[slot] == _WRITTEN)

    def is_loading(self, slot: int) -> bool:
        return bool(self.states[slot] == _LOADING)

    def load(self, slots: Sequence[int], loading: Loading) -> None:
        """Let the new values of registers be used only after `loaded`."""
        self.states[slots] = _LOADING
        self.loading.update(dict.fromkeys(slots, loading))

    def loaded(self, loading: Loading, slots: Sequence[int]) -> None:
        """Give these registers their values, unless something else was written since."""
        own = [slot for slot in slots if self.loading[slot] is loading]
        states = self.states[own]
        states[states == _LOADING] = _WRITTEN
        self.states[own] = states
