"""What the engine knows of a warp: its code, registers and memory, and what it has observed."""

from typing import Any

import numpy as np

from nvfp4.emulator.engine.library import address
from nvfp4.emulator.engine.records import Packed
from nvfp4.emulator.engine.registers import Registers

_FIXED = 17
"""The words of a Warp in engine.c that never change."""
_SEEN, _SEEN_WORDS, _SHARED, _GLOBAL, _MAY, _GENERATION, _READS, _CLEARS, _QUESTION = range(
    _FIXED, _FIXED + 9
)
_MEMO = 256
"""The entries of a memo (memory.h)."""

TO_PYTHON, ASK_EVENT, ASK_READERS, ASK_CLEAR, ASK_TENSOR = range(1, 6)
"""What the engine answers if an instruction is not its own to run."""


class Surroundings:
    """The memory around a warp: of its CTA, and the tensors and parameters of its launch."""

    __slots__ = ("keep", "words")

    def __init__(
        self,
        checks: bool,
        shared: np.ndarray,
        writers: np.ndarray,
        readers: np.ndarray,
        size: int,
        rank: int,
        tensors: np.ndarray,
        cta: int,
        parameters: np.ndarray,
    ) -> None:
        self.keep = shared, writers, readers, tensors, parameters
        own = int(checks), address(shared), address(writers), address(readers), size, rank
        other = address(tensors), len(tensors), cta + 1, address(parameters), len(parameters)
        self.words = *own, *other


class Knowledge:
    """A Warp of engine.c, kept up to date."""

    __slots__ = ("_clears", "_keep", "_reads", "_recorded", "_seen", "_words", "pointer")

    def __init__(self, code: Packed, registers: Registers, around: Surroundings) -> None:
        self._reads = np.zeros((_MEMO, 2), np.int64)
        self._clears = np.zeros((_MEMO, 2), np.int64)
        self._recorded = np.zeros(len(around.keep[3]) + 1, np.int64)
        self._seen = np.zeros(64, np.uint64)
        self._keep: Any = code, around
        arrays = address(code.records), address(code.starts), *registers.pointers
        fixed = *arrays, address(code.elements), *around.words, address(self._recorded)
        assert len(fixed) == _FIXED
        memos = address(self._reads), address(self._clears)
        self._words = np.array([*fixed, address(self._seen), 0, 0, 0, 0, 1, *memos, 0], np.int64)
        self.pointer = address(self._words)

    def update(self, seen: int, shared: int, world: int, may_global: bool) -> None:
        """Tell what the warp has observed, and of its accesses to shared and global memory now.

        Those have an event each, 0 before the first one. `may_global` allows global memory at all.
        """
        count = (seen.bit_length() + 63) // 64
        if count > len(self._seen):
            self._seen = np.zeros(2 * count, np.uint64)
            self._words[_SEEN] = address(self._seen)
        self._seen[:count] = np.frombuffer(seen.to_bytes(8 * count, "little"), np.uint64)
        words = self._words
        words[_SEEN_WORDS], words[_SHARED], words[_GLOBAL], words[_MAY] = (
            count, shared, world, may_global
        )  # fmt: skip
        words[_GENERATION] += 1

    @property
    def question(self) -> int:
        """What the engine asks about: a group of readers, the number of a tensor, or an event.

        The event is that of accesses to global memory (1) or to shared memory (0).
        """
        return int(self._words[_QUESTION])

    def read_makes(self, group: int, new: int) -> None:
        """Answer what group a read makes of a group of readers."""
        self._reads[group % _MEMO] = int(self._words[_GENERATION]) << 32 | group, new

    def is_clear(self, group: int, clear: bool) -> None:
        """Answer whether the warp has waited for a whole group of readers."""
        self._clears[group % _MEMO] = int(self._words[_GENERATION]) << 32 | group, clear

    def is_recorded(self, tensor: int, event: int) -> None:
        """Answer that a tensor knows of this event's writes."""
        self._recorded[tensor] = event
