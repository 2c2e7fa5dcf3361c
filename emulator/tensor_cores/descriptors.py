"""Descriptors of matrices and MMAs (PTX ISA: Matrix Descriptor, Instruction descriptor)."""

from functools import lru_cache
from typing import NamedTuple

import numpy as np

from nvfp4.emulator.hazards import Hazard, Kind, Unsupported
from nvfp4.emulator.memory.swizzle import swizzled

_SWIZZLE_BITS = {0: 0, 2: 3, 4: 2, 6: 1}
"""The address bits that each layout type (bits 61-63) exchanges: no, 128, 64, 32 bytes."""


_MATRIX_RESERVED = 3 << 14 | 3 << 30 | 1 << 48 | 0xFF << 53
_INSTRUCTION_RESERVED = 1 | 1 << 1 | 1 << 3 | 1 << 6 | 7 << 24
"""The bits that must be 0 in a descriptor, of an instruction of kind::mxf4nvf4."""


class MatrixDescriptor(NamedTuple):
    """A K-major matrix in shared memory."""

    start: int  # bytes
    leading: int  # bytes between 16-byte columns, without swizzle
    stride: int  # bytes between groups of 8 rows
    swizzle: int  # address bits exchanged


def matrix_descriptor(bits: int) -> MatrixDescriptor:
    if bits >> 46 & 3 != 1:
        raise Hazard(Kind.DESCRIPTOR, f"matrix descriptor {bits:#018x}: version is not 1")
    if bits & _MATRIX_RESERVED:
        raise Hazard(Kind.DESCRIPTOR, f"matrix descriptor {bits:#018x}: reserved bits are set")
    layout = bits >> 61 & 7
    if layout not in _SWIZZLE_BITS or bits >> 49 & 15:
        raise Unsupported(f"matrix descriptor {bits:#018x}: layout or offset mode")
    start, leading, stride = (bits >> at & 0x3FFF for at in (0, 16, 32))
    return MatrixDescriptor(start << 4, leading << 4, stride << 4, _SWIZZLE_BITS[layout])


@lru_cache(maxsize=1024)
def _chunk_offsets(
    phase: int, leading: int, stride: int, swizzle: int, rows: int, columns: int
) -> np.ndarray:
    """Give chunk numbers from the 1 KB that holds the start, which is `phase` bytes into it."""
    row = np.arange(rows)[:, None]
    column = np.arange(columns)[None, :]
    if swizzle:
        linear = row // 8 * stride + row % 8 * (16 << swizzle) + column * 16
        where = swizzled(linear + phase, swizzle)
        assert isinstance(where, np.ndarray)
    else:
        where = phase + row // 8 * stride + row % 8 * 16 + column * leading
    return where // 16


def chunks(matrix: MatrixDescriptor, rows: int, columns: int) -> np.ndarray:
    """Give [rows, columns] numbers of a matrix's 16-byte chunks in shared memory."""
    phase = matrix.start % 1024
    offsets = _chunk_offsets(phase, matrix.leading, matrix.stride, matrix.swizzle, rows, columns)
    return offsets + (matrix.start - phase) // 16


class InstructionDescriptor(NamedTuple):
    """The shape and the options of a block-scaled MMA of 4-bit operands."""

    m: int
    n: int
    negate_a: bool
    negate_b: bool
    scale_is_e8m0: bool


@lru_cache(maxsize=256)
def instruction_descriptor(bits: int) -> InstructionDescriptor:
    """Read a descriptor of kind::mxf4nvf4: E2M1, K-major, dense, K = 64, scale factor ids 0."""
    if bits >> 7 & 7 != 1 or bits >> 10 & 7 != 1:
        raise Hazard(Kind.DESCRIPTOR, f"instruction descriptor {bits:#010x}: operands are not E2M1")
    if bits >> 15 & 3:
        raise Hazard(Kind.DESCRIPTOR, f"instruction descriptor {bits:#010x}: not K-major")
    if bits & _INSTRUCTION_RESERVED:
        raise Hazard(Kind.DESCRIPTOR, f"instruction descriptor {bits:#010x}: reserved bits are set")
    if bits >> 2 & 1 or bits >> 31:
        raise Unsupported(f"instruction descriptor {bits:#010x}: sparse, or K = 96")
    if bits >> 4 & 3 or bits >> 29 & 3:
        raise Hazard(
            Kind.DESCRIPTOR,
            f"instruction descriptor {bits:#010x}: four scales a word have the id 0",
        )
    return InstructionDescriptor(
        m=(bits >> 24 & 31) * 16,
        n=(bits >> 17 & 63) * 8,
        negate_a=bool(bits >> 13 & 1),
        negate_b=bool(bits >> 14 & 1),
        scale_is_e8m0=bool(bits >> 23 & 1),
    )
