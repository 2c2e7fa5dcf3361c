"""Tensor maps: the 128 bytes that describe a tensor and a box of it to the TMA unit.

NVIDIA does not document the bits. They were found by compiling and, on an H200, with the driver's
cuTensorMapEncodeTiled. The fields mean what its parameters mean (CUDA driver API).
"""

import struct
from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache

import numpy as np

from nvfp4.emulator.hazards import Hazard, Kind, Unsupported

_FORMAT_BITS = {0: 8, 1: 16, 2: 32, 3: 32, 4: 64, 5: 64, 6: 16, 7: 32, 8: 32, 9: 64, 10: 16, 11: 4}
"""The bits of each element format.

0 to 5 are integers: u8, u16, u32, s32, u64, s64. Then come f16, f32, f32 with denormals flushed,
f64, bf16, and 4-bit elements, two to a byte in shared memory too.
"""

SWIZZLE_BITS = {0: 0, 1: 1, 2: 2, 3: 3}
"""The number of address bits that each swizzle mode exchanges: no, 32, 64, 128 bytes."""


@dataclass(frozen=True, slots=True)
class TensorMap:
    """A tensor in global memory, the box that a copy moves, and its swizzle in shared memory."""

    base: int
    element_bits: int
    swizzle: int  # address bits that are exchanged
    sizes: tuple[int, ...]  # elements; the innermost dimension first, as everywhere in TMA
    strides: tuple[int, ...]  # bytes, of dimensions 1 and up
    box: tuple[int, ...]  # elements

    @property
    def box_bytes(self) -> int:
        return int(np.prod(self.box, dtype=np.int64)) * self.element_bits // 8


def encode(
    base: int,
    element: int,
    swizzle: int,
    sizes: Sequence[int],
    strides: Sequence[int],
    box: Sequence[int],
) -> bytes:
    """Make a tensor map of a tiled tensor, as cuTensorMapEncodeTiled does.

    `element` is a format in _FORMAT_BITS, `swizzle` a mode in SWIZZLE_BITS; the rest is as in
    TensorMap.
    """
    data = bytearray(128)
    flags = 2 | len(sizes) - 1 << 4 | element << 7 | swizzle << 13
    struct.pack_into("<QI", data, 0, base, flags)
    struct.pack_into(f"<{len(strides)}I", data, 12, *(stride // 16 for stride in strides))
    struct.pack_into(f"<{len(sizes)}I", data, 32, *(size - 1 for size in sizes))
    struct.pack_into(f"<{len(box)}B", data, 55, *(size - 1 for size in box))
    return bytes(data)


@lru_cache(maxsize=256)
def decode(data: bytes) -> TensorMap:
    """Read a tensor map from its bytes; raises Hazard where no valid one has such bits."""
    words = struct.unpack("<16Q", data)
    rank = (words[1] >> 4 & 7) + 1
    element = words[1] >> 7 & 15
    if rank > 5 or element not in _FORMAT_BITS or not words[1] & 2:
        raise Hazard(Kind.DESCRIPTOR, "these 128 bytes are no tensor map")
    if words[1] >> 11 & 3:
        raise Unsupported("interleaved tensor maps")
    if words[1] >> 15 & 1:
        raise Unsupported("tensor maps that fill with NaN")
    half = struct.unpack("<32I", data)
    strides = tuple(16 * half[i] for i in (3, 4, 5, 6))[: rank - 1]
    sizes = tuple(half[i] + 1 for i in (8, 9, 10, 11, 12))[:rank]
    box = tuple(data[55 + i] + 1 for i in range(rank))
    bits = _FORMAT_BITS[element]
    if box[0] * bits % 128:
        raise Hazard(Kind.DESCRIPTOR, f"the box's rows are {box[0] * bits / 8} bytes, not n * 16")
    swizzle = SWIZZLE_BITS[words[1] >> 13 & 3]
    if swizzle and box[0] * bits // 8 > 16 << swizzle:
        raise Hazard(
            Kind.DESCRIPTOR, f"rows of {box[0] * bits // 8} bytes in a {16 << swizzle}-byte swizzle"
        )
    if words[0] % 16:
        raise Hazard(Kind.DESCRIPTOR, f"the tensor's address {words[0]:#x} is no multiple of 16")
    return TensorMap(words[0], bits, swizzle, sizes, strides, box)
