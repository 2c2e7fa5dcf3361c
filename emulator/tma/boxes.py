"""Boxes of tensors in global memory, which a tensor map and coordinates name."""

from typing import Any

import numpy as np

from nvfp4.emulator.hazards import Hazard, Kind, Unsupported
from nvfp4.emulator.memory.addresses import PARAMETER_WINDOW, SHARED_WINDOW
from nvfp4.emulator.memory.global_memory import Tensor
from nvfp4.emulator.tma import tensor_map
from nvfp4.emulator.tma.tensor_map import TensorMap


def map_at(warp: Any, address: int) -> TensorMap:
    """Read the tensor map at a generic address, among the parameters or in global memory."""
    if address & SHARED_WINDOW:
        raise Unsupported("tensor maps in shared memory")
    if address % 64:
        raise Hazard(Kind.MISALIGNED, "a tensor map needs an address that is a multiple of 64")
    offset = address & (PARAMETER_WINDOW - 1)
    if address & PARAMETER_WINDOW:
        data = warp.machine.parameters.data[offset : offset + 128]
    else:
        data = warp.machine.memory.load(np.array([address]), 8, 128, warp)
    return tensor_map.decode(data.tobytes())


class Box:
    """A box of a tensor: the part of it that lies inside the tensor."""

    def __init__(self, warp: Any, tmap: TensorMap, coordinates: list[int]) -> None:
        if len(coordinates) != len(tmap.sizes):
            raise Hazard(
                Kind.DESCRIPTOR, f"{len(coordinates)} coordinates, {len(tmap.sizes)} dimensions"
            )
        self.size, self.swizzle = tmap.box_bytes, tmap.swizzle
        starts, counts, skips = [], [], []
        for at, size, extent in zip(coordinates, tmap.sizes, tmap.box, strict=True):
            first, last = max(at, 0), min(at + extent, size)
            starts.append(first)
            skips.append(first - at)
            counts.append(max(last - first, 0))
        bits = tmap.element_bits
        if starts[0] * bits % 8 or counts[0] * bits % 8:
            raise Hazard(Kind.DESCRIPTOR, "a row of the box begins or ends within a byte")
        self.shape = tuple(reversed((tmap.box[0] * bits // 8, *tmap.box[1:])))
        width, skips[0] = counts[0] * bits // 8, skips[0] * bits // 8
        self._counts = (*reversed(counts[1:]), width)
        self.inside = tuple(
            slice(s, s + n) for s, n in zip(reversed(skips), self._counts, strict=True)
        )
        self.whole = self._counts == self.shape
        self.tensor: Tensor | None = None  # if nothing of the box lies inside
        if 0 in counts:
            return
        pairs = list(zip(starts[1:], counts[1:], tmap.strides, strict=True))
        low = tmap.base + starts[0] * bits // 8 + sum(s * stride for s, _, stride in pairs)
        high = low + width + sum((n - 1) * stride for _, n, stride in pairs)
        self.tensor = warp.machine.memory.find(low, high)
        self._offset = low - self.tensor.base
        self._strides = (*(stride for _, _, stride in reversed(pairs)), 1)

    def check_alignment(self, offset: int) -> None:
        """Refuse a copy to or from this shared offset if it is not a multiple of 128."""
        if offset % 128:
            raise Hazard(Kind.MISALIGNED, f"shared offset {offset:#x} of a tensor copy")

    def view(self, array: np.ndarray) -> np.ndarray:
        """View the box in an array that has an element for each byte of the tensor."""
        strides = tuple(s * array.itemsize for s in self._strides)
        return np.lib.stride_tricks.as_strided(array[self._offset :], self._counts, strides)

    def fetch(self, memory: Any, warp: Any) -> np.ndarray:
        """Read the box's bytes in order, with zeros outside the tensor."""
        if self.tensor is None:
            return np.zeros(int(np.prod(self.shape)), np.uint8)
        memory.view_read_check(self.tensor, self.view, warp)
        data = self.view(self.tensor.bytes.data)
        if self.whole:
            return np.ascontiguousarray(data).reshape(-1)
        out = np.zeros(self.shape, np.uint8)
        out[self.inside] = data
        return out.reshape(-1)

    def put(self, memory: Any, data: np.ndarray, warp: Any, event: int) -> None:
        if self.tensor is None:
            return
        if memory.check:
            memory.view_write_check(self.tensor, self.view(self.tensor.track()), warp, event)
        self.view(self.tensor.bytes.data)[...] = data.reshape(self.shape)[self.inside]
