"""Global memory: the registered tensors, and which CTA wrote which byte of them."""

from bisect import bisect_right
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
import torch

from nvfp4.emulator.engine.library import address
from nvfp4.emulator.hazards import Hazard, Kind
from nvfp4.emulator.lanes import DTYPES
from nvfp4.emulator.memory.bytes import Bytes
from nvfp4.emulator.memory.shadow import Index


class Tensor:
    """A registered tensor, as the span of memory from its first element to its last."""

    def __init__(self, name: str, tensor: torch.Tensor, output: bool) -> None:
        if tensor.device.type != "cpu":
            raise ValueError(f"memory[{name!r}] needs a CPU tensor, got {tensor.device}")
        strides = zip(tensor.shape, tensor.stride(), strict=True)
        span = 1 + sum((n - 1) * stride for n, stride in strides) if tensor.numel() else 0
        self.name, self.base = name, tensor.data_ptr()
        self.size = span * tensor.element_size()
        self.tensor = tensor  # keeps the memory
        data = torch.empty(0, dtype=torch.uint8)
        if self.size:
            data = tensor.as_strided((span,), (1,)).view(torch.uint8)
        self.bytes = Bytes(data.numpy(), self.base % 8 == 0)
        self.output = output
        self.dense = tensor.numel() == span
        # For each byte the CTA that wrote it, plus 1; -1 if an earlier launch did.
        self.writer = np.zeros(0, np.int32)
        # For each CTA that writes it: the cluster, and the events of these writes.
        self.writes: dict[int, tuple[Any, int]] = {}
        self.row = np.zeros(4, np.uint64)

    @property
    def end(self) -> int:
        return self.base + self.size

    def track(self) -> np.ndarray:
        """Give `writer`, which exists from the first write on."""
        if not len(self.writer):
            self.writer = np.zeros(self.size, np.int32)
            self.row[2] = address(self.writer)
        return self.writer

    def record(self, warp: Any, event: int) -> None:
        """Record that a warp's CTA writes here, as part of an event."""
        cta = warp.cta.number
        _, events = self.writes.get(cta, (None, 0))
        self.writes[cta] = (warp.cluster, events | 1 << event)


class GlobalMemory:
    """The registered tensors by address; an access to any other address is a hazard."""

    def __init__(
        self, memory: Mapping[str, torch.Tensor], outputs: frozenset[str], check: bool
    ) -> None:
        if unknown := outputs - memory.keys():
            raise ValueError(f"outputs {sorted(unknown)} are not in memory")
        tensors = [Tensor(name, tensor, name in outputs) for name, tensor in memory.items()]
        self.tensors = sorted((t for t in tensors if t.size), key=lambda t: t.base)
        self._bases = [t.base for t in self.tensors]
        self.table = np.zeros((len(self.tensors), 4), np.uint64)
        """The tensors as the engine finds them (engine/memory.h)."""
        for row, tensor in zip(self.table, self.tensors, strict=True):
            row[:] = tensor.base, tensor.end, 0, tensor.output
            tensor.row = row
        self.check = check

    def find(self, low: int, high: int) -> Tensor:
        """Find the tensor that holds all addresses from low to high - 1."""
        position = bisect_right(self._bases, low) - 1
        if position >= 0:
            tensor = self.tensors[position]
            if high <= tensor.end:
                return tensor
        raise Hazard(Kind.OUT_OF_BOUNDS, self._outside(low, high))

    def _outside(self, low: int, high: int) -> str:
        what = f"global bytes {low:#x}..{high - 1:#x} belong to no tensor"
        if not self.tensors:
            return what
        near = min(self.tensors, key=lambda t: max(t.base - low, high - t.end))
        distance = f"{low - near.base:+d} bytes from its start, {high - near.end:+d} from its end"
        return f"{what}; the nearest is {near.name} ({near.size} bytes): {distance}"

    def load(self, addresses: np.ndarray, bits: int, count: int, warp: Any) -> np.ndarray:
        """Load [addresses, count] elements, from one tensor or several.

        `warp` is None for a strong load (read_check).
        """
        width = bits // 8 * count
        parts = self._parts(addresses, width)
        out = np.empty((len(addresses), count), DTYPES[bits])
        for tensor, chosen in parts:
            offsets = addresses[chosen] - tensor.base
            if tensor.output or len(tensor.writer):  # all other bytes may be read
                self.read_check(tensor, offsets[:, None] + np.arange(width), warp)
            out[chosen] = tensor.bytes.gather(offsets, bits, count)
        return out

    def store(self, addresses: np.ndarray, values: np.ndarray, warp: Any, event: int) -> None:
        width = values.itemsize * values.shape[1]
        for tensor, chosen in self._parts(addresses, width):
            offsets = addresses[chosen] - tensor.base
            cells = offsets[:, None] + np.arange(width)
            try:
                self.write_check(tensor, cells, warp, event)
            except Hazard:
                # CTAs may store the same value: each row's programs store its scale, say.
                changed = tensor.bytes.data[cells] != values[chosen].view(np.uint8)
                theirs = ~np.isin(tensor.writer[cells], (-1, 0, warp.cta.number + 1))
                if (changed & theirs).any():
                    raise
                if not theirs.all():
                    self.write_check(tensor, cells[~theirs], warp, event)
            tensor.bytes.scatter(offsets, values[chosen])

    def _parts(self, addresses: np.ndarray, width: int) -> list[tuple[Tensor, Index]]:
        low, high = int(addresses.min()), int(addresses.max()) + width
        position = bisect_right(self._bases, low) - 1
        if position >= 0 and high <= self.tensors[position].end:
            return [(self.tensors[position], slice(None))]
        owners = np.searchsorted(self._bases, addresses, side="right") - 1
        parts: list[tuple[Tensor, Index]] = []
        for owner in np.unique(owners):
            chosen = np.flatnonzero(owners == owner)
            span = addresses[chosen]
            parts.append((self.find(int(span.min()), int(span.max()) + width), chosen))
        return parts

    def read_check(self, tensor: Tensor, index: Index, warp: Any) -> None:
        """Check that a warp may rely on these bytes.

        Those of an output must have been written. The warp must have waited for what another CTA of
        the launch has written; `warp` is None for a strong access, which may race.
        """
        if not self.check:
            return
        if len(tensor.writer):
            self._rely(tensor, tensor.writer[index], warp)
        elif tensor.output:
            raise Hazard(Kind.UNINITIALISED, f"{tensor.name} is an output, not yet written")

    def view_read_check(self, tensor: Tensor, view: Callable[..., np.ndarray], warp: Any) -> None:
        """Check a view of the tensor's bytes, as read_check does an index."""
        if not self.check:
            return
        if len(tensor.writer):
            self._rely(tensor, view(tensor.writer), warp)
        elif tensor.output:
            raise Hazard(Kind.UNINITIALISED, f"{tensor.name} is an output, not yet written")

    @staticmethod
    def _rely(tensor: Tensor, writer: np.ndarray, warp: Any) -> None:
        if tensor.output and not writer.all():
            raise Hazard(
                Kind.UNINITIALISED, f"{tensor.name} is an output and is read before it is written"
            )
        if warp is None:
            return
        own = warp.cta.number + 1
        if int(writer.max()) <= 0 or int(writer.min()) == int(writer.max()) == own:
            return
        for cta in (np.unique(writer[(writer > 0) & (writer != own)]) - 1).tolist():
            cluster, events = tensor.writes[cta]
            if warp.has_acquired(cta) or cluster is warp.cluster and not events & ~warp.seen:
                continue
            raise Hazard(
                Kind.RACE, f"{tensor.name} is read where CTA {cta} has written in this launch,"
                " without waiting for it"
            )  # fmt: skip

    def write_check(
        self, tensor: Tensor, index: Index, warp: Any, event: int, atomic: bool = False
    ) -> None:
        """Check that no other CTA of the launch writes these bytes, and record the write."""
        if self.check:
            writer = tensor.track()
            self._claim(tensor, writer[index], warp, event, atomic)
            writer[index] = warp.cta.number + 1

    def view_write_check(self, tensor: Tensor, cells: np.ndarray, warp: Any, event: int) -> None:
        """Check and record the write of a view of tensor.track(), as write_check does an index."""
        self._claim(tensor, cells, warp, event, False)
        cells[...] = warp.cta.number + 1

    @staticmethod
    def _claim(tensor: Tensor, old: np.ndarray, warp: Any, event: int, atomic: bool) -> None:
        cta = warp.cta.number
        low, high = int(old.min()), int(old.max())
        if not atomic and high > 0 and not low == high == cta + 1:
            others = old[(old > 0) & (old != cta + 1)]
            if len(others):
                message = f"CTAs {others[0] - 1} and {cta} both write a byte of {tensor.name}"
                raise Hazard(Kind.RACE, message)
        tensor.record(warp, event)

    def launch_ended(self) -> None:
        """Let later launches in the stream read and overwrite what this one wrote."""
        for tensor in self.tensors:
            tensor.writes = {}
            if len(tensor.writer):
                tensor.writer[tensor.writer > 0] = -1

    def finish(self) -> None:
        """Check that every byte of the outputs has been written."""
        for tensor in self.tensors:
            if not (self.check and tensor.output and tensor.dense):
                continue
            missing = tensor.size if not len(tensor.writer) else int((tensor.writer == 0).sum())
            if missing:
                first = int(np.argmin(tensor.writer != 0)) if len(tensor.writer) else 0
                raise Hazard(
                    Kind.UNWRITTEN,
                    f"{missing} of {tensor.size} bytes of {tensor.name} were never written;"
                    f" the first is byte {first}",
                )
