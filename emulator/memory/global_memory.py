"""Global memory, which is the registered tensors and nothing else, and a CTA's shared memory.

Addresses are the CPU's own in global memory. A shared address is the CTA's rank in its cluster
times 2^24 plus an offset, so that it also names memory of its peers; generic addresses of shared
memory and of parameters lie in windows far above any that a CPU uses.
"""

from bisect import bisect_right
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import numpy as np
import torch

from nvfp4.emulator import ptx
from nvfp4.emulator.hazards import Hazard, Kind
from nvfp4.emulator.lanes import DTYPES
from nvfp4.emulator.memory.shadow import Events, Index, Shadow

SHARED_WINDOW = 1 << 58
PARAMETER_WINDOW = 1 << 59
RANK_SHIFT = 24
"""Where a cluster's ranks stand in shared addresses. PTX leaves it open; the DSL's kernels rely on
it where they clear bit 24 of an mbarrier's address to name the even CTA of a pair."""
DYNAMIC_SHARED_BASE = 1024
"""The system keeps the first 1 KB of shared memory on sm_90 and later (CUDA programming guide)."""


class Bytes:
    """Memory as bytes and, where its address allows, as wider words."""

    def __init__(self, data: np.ndarray, aligned: bool) -> None:
        self.data = data
        self._views = {8: data}
        if aligned:
            for bits in (16, 32, 64):
                whole = len(data) // (bits // 8) * (bits // 8)
                self._views[bits] = data[:whole].view(DTYPES[bits])

    @property
    def chunks(self) -> np.ndarray:
        """[n, 2]: 16 bytes a row, as the async proxy moves them."""
        return self._views[64][: len(self.data) // 16 * 2].reshape(-1, 2)

    def gather(self, offsets: np.ndarray, bits: int, count: int) -> np.ndarray:
        """[offsets, count] elements of `bits` bits."""
        size = bits // 8
        view = self._views.get(bits)
        if view is not None:
            return view[(offsets // size)[:, None] + np.arange(count)]
        return self.data[offsets[:, None] + np.arange(size * count)].view(DTYPES[bits])

    def scatter(self, offsets: np.ndarray, values: np.ndarray) -> None:
        """Writes [offsets, count] elements."""
        size, count = values.itemsize, values.shape[1]
        view = self._views.get(size * 8)
        if view is not None:
            view[(offsets // size)[:, None] + np.arange(count)] = values
        else:
            raw = np.ascontiguousarray(values).view(np.uint8)
            self.data[offsets[:, None] + np.arange(size * count)] = raw


class Tensor:
    """A registered tensor: the span of memory from its first element to its last."""

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
        # Of each byte: the CTA that wrote it plus 1; -1: an earlier launch.
        self.writer = np.zeros(0, np.int32)
        # Of each CTA that writes it: its cluster, and the events that these writes belong to.
        self.writes: dict[int, tuple[Any, int]] = {}

    @property
    def end(self) -> int:
        return self.base + self.size

    def track(self) -> np.ndarray:
        """`writer`, from the first write on."""
        if not len(self.writer):
            self.writer = np.zeros(self.size, np.int32)
        return self.writer


class GlobalMemory:
    def __init__(
        self, memory: Mapping[str, torch.Tensor], outputs: frozenset[str], check: bool
    ) -> None:
        if unknown := outputs - memory.keys():
            raise ValueError(f"outputs {sorted(unknown)} are not in memory")
        tensors = [Tensor(name, tensor, name in outputs) for name, tensor in memory.items()]
        self.tensors = sorted((t for t in tensors if t.size), key=lambda t: t.base)
        self._bases = [t.base for t in self.tensors]
        self.check = check

    def find(self, low: int, high: int) -> Tensor:
        """The tensor that holds addresses low <= address < high."""
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
        """[addresses, count] elements; the addresses may be in several tensors. `warp`: of an
        ordinary load, for read_check.
        """
        width = bits // 8 * count
        parts = self._parts(addresses, width)
        out = np.empty((len(addresses), count), DTYPES[bits])
        for tensor, chosen in parts:
            offsets = addresses[chosen] - tensor.base
            self.read_check(tensor, offsets[:, None] + np.arange(width), warp)
            out[chosen] = tensor.bytes.gather(offsets, bits, count)
        return out

    def store(self, addresses: np.ndarray, values: np.ndarray, warp: Any, event: int) -> None:
        width = values.itemsize * values.shape[1]
        for tensor, chosen in self._parts(addresses, width):
            offsets = addresses[chosen] - tensor.base
            self.write_check(tensor, offsets[:, None] + np.arange(width), warp, event)
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
        """Whether a warp may rely on these bytes: those of an output have been written, and what
        another CTA of the launch has written, the warp has waited for. No warp: a strong access,
        which may race.
        """
        if not self.check:
            return
        if len(tensor.writer):
            self._rely(tensor, tensor.writer[index], warp)
        elif tensor.output:
            raise Hazard(Kind.UNINITIALISED, f"{tensor.name} is an output, not yet written")

    def view_read_check(self, tensor: Tensor, view: Callable[..., np.ndarray], warp: Any) -> None:
        """The same for a view of the tensor's bytes."""
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
            if warp.acquired >> cta & 1 or cluster is warp.cluster and not events & ~warp.seen:
                continue
            raise Hazard(
                Kind.RACE, f"{tensor.name} is read where CTA {cta} has written in this launch,"
                " without waiting for it"
            )  # fmt: skip

    def write_check(
        self, tensor: Tensor, index: Index, warp: Any, event: int, atomic: bool = False
    ) -> None:
        """A byte is written by one CTA of a launch."""
        if self.check:
            writer = tensor.track()
            self._claim(tensor, writer[index], warp, event, atomic)
            writer[index] = warp.cta.number + 1

    def view_write_check(self, tensor: Tensor, cells: np.ndarray, warp: Any, event: int) -> None:
        """write_check for a view of tensor.track()."""
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
        _, events = tensor.writes.get(cta, (None, 0))
        tensor.writes[cta] = (warp.cluster, events | 1 << event)

    def launch_ended(self) -> None:
        """What one launch wrote, the next may overwrite: it comes after it in the stream."""
        for tensor in self.tensors:
            tensor.writes = {}
            if len(tensor.writer):
                tensor.writer[tensor.writer > 0] = -1

    def finish(self) -> None:
        """Every byte of an output has been written."""
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


class SharedMemory:
    """A CTA's shared memory and its shadow, from offset 0 of its window."""

    def __init__(self, size: int, events: Events, owner: str) -> None:
        self.size = size
        padded = -(-size // 16) * 16
        self.bytes = Bytes(np.zeros(padded, np.uint8), True)
        self.shadow = Shadow(
            (padded,), events, lambda index, n: f"{owner}: shared byte {_nth(index, n):#x}"
        )
        self.chunk_shadow = self.shadow.reshaped(
            (-1, 16),
            lambda index, n: f"{owner}: shared byte {_nth(index, n // 16) * 16 + n % 16:#x}",
        )

    def bound(self, low: int, high: int) -> None:
        if low < DYNAMIC_SHARED_BASE or high > self.size:
            raise Hazard(
                Kind.OUT_OF_BOUNDS,
                f"shared bytes {low:#x}..{high - 1:#x}; the CTA has {DYNAMIC_SHARED_BASE:#x}.."
                f"{self.size - 1:#x}",
            )


def _nth(index: Index, n: int) -> int:
    """The n-th cell that an index names."""
    if isinstance(index, slice):
        return (index.start or 0) + n
    assert isinstance(index, np.ndarray)
    return int(index.ravel()[n])


class SharedLayout(NamedTuple):
    offsets: dict[str, int]
    size: int


def shared_layout(variables: list[ptx.Variable], dynamic: int) -> SharedLayout:
    """Offsets of the shared variables: static ones first, then the dynamic ones, which overlap."""
    offsets, end = {}, DYNAMIC_SHARED_BASE
    for variable in variables:
        if variable.size:
            offsets[variable.name] = start = -(-end // variable.align) * variable.align
            end = start + variable.size
    size = end
    for variable in variables:
        if not variable.size:
            offsets[variable.name] = start = -(-end // variable.align) * variable.align
            size = max(size, start + dynamic)
    return SharedLayout(offsets, size)
