"""The registers of a warp: one array, in which each slot has its place."""

from collections.abc import Iterable, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np

from nvfp4.emulator.hazards import Hazard, Kind
from nvfp4.emulator.lanes import ALL, DTYPES, LANES, Value, flags, spread

ALWAYS = 0
"""A slot that always has a value, for records with fewer sources than they could have."""

_NEVER, _WRITTEN, _LOADING = range(3)
"""What a slot holds: no value yet, a value, or one that nothing may use before a wait."""


class Loading(NamedTuple):
    """Why registers have no value yet; each load has one of its own."""

    why: str


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
        self.template = template.file[: self._end_of_constants()].copy()

    def _end_of_constants(self) -> int:
        return max(self.places[s] + max(4, LANES * self.bits[s] // 8) for s in self.filled)


class Registers:
    """A warp's registers by slot.

    Reading gives an int for a predicate, one bit a lane, and an array of 32 lanes for the others.
    Reading a register without a value is a hazard.
    """

    __slots__ = ("_bits", "_items", "_views", "file", "loading", "states")

    def __init__(self, layout: Layout) -> None:
        self._bits, self._items = layout.bits, layout.items
        self.file = np.empty(layout.size, np.uint8)
        self.states = layout.states.copy()
        self.file[: len(layout.template)] = layout.template
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
        """Write a register in some lanes; the others keep their values."""
        if self.states[slot] == _LOADING:
            raise self.missing(slot)
        if self.states[slot] == _NEVER:
            lanes = ALL
        bits, at = self._bits[slot], self._items[slot]
        if bits == 1:
            before = int(self._views[1][at]) if lanes != ALL else 0
            self._views[1][at] = before & ~lanes | int(value) & lanes
        else:
            old = self._views[bits][at : at + LANES]
            np.copyto(old, spread(value, bits), where=flags(lanes))
        self.states[slot] = _WRITTEN

    def missing(self, slot: int) -> Hazard:
        """Say why a register has no value that can be used."""
        if self.states[slot] == _LOADING:
            return Hazard(Kind.EARLY_READ, self.loading[slot].why)
        return Hazard(Kind.UNINITIALISED, "a register is read that was never written")

    def has_value(self, slot: int) -> bool:
        return bool(self.states[slot] == _WRITTEN)

    def is_loading(self, slot: int) -> bool:
        return bool(self.states[slot] == _LOADING)

    def load(self, slot: int, loading: Loading) -> None:
        """Let a register's new value be used only after `loaded`."""
        self.states[slot] = _LOADING
        self.loading[slot] = loading

    def loaded(self, loading: Loading, slots: Iterable[int]) -> None:
        """Give these registers their values, unless something else was written since."""
        for slot in slots:
            if self.states[slot] == _LOADING and self.loading[slot] is loading:
                self.states[slot] = _WRITTEN
