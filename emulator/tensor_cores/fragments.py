"""How the lanes of a warp hold the matrices of an MMA (PTX ISA: Matrix Fragments for mma, wgmma).

Lane 4 g + t holds, of each 32-bit register, E = 32 / bits elements that are neighbours along K.
- A, 16 rows: registers go through rows g and g + 8, then through K in steps of 4 E.
- B, 8 columns: column g; registers go through K in steps of 4 E.
- C and D, 16 x 8: columns 2 t and the next one of row g, then of row g + 8.
"""

import numpy as np


def _codes(words: np.ndarray, bits: int) -> np.ndarray:
    """Part [registers, 32] words into [registers, 8, 4, E] codes of so many bits."""
    if bits >= 8:
        codes = words.view(f"u{bits // 8}")
    else:
        octets = words.view(np.uint8)
        codes = np.stack([octets & 15, octets >> 4], -1)
    return codes.reshape(len(words), 8, 4, 32 // bits)


def matrix_a(words: np.ndarray, bits: int) -> np.ndarray:
    """Give the [16, K] codes of A."""
    codes = _codes(words, bits).reshape(len(words) // 2, 2, 8, 4, 32 // bits)
    return codes.transpose(1, 2, 0, 3, 4).reshape(16, -1)


def matrix_b(words: np.ndarray, bits: int) -> np.ndarray:
    """Give the [8, K] codes of B, transposed."""
    return _codes(words, bits).transpose(1, 0, 2, 3).reshape(8, -1)


def accumulator(words: np.ndarray, bits: int) -> np.ndarray:
    """Give the [16, N] patterns of an accumulator whose registers are in groups of 8 columns."""
    codes = words.view(f"u{bits // 8}")  # a register holds two of 16 bits, or one of 32
    if bits == 16:
        parts = codes.reshape(-1, 2, 8, 4, 2)
        return parts.transpose(1, 2, 0, 3, 4).reshape(16, -1)
    parts = codes.reshape(-1, 2, 2, 8, 4)
    return parts.transpose(1, 3, 0, 4, 2).reshape(16, -1)


def accumulator_words(values: np.ndarray) -> np.ndarray:
    """Give the [registers, 32] words of an accumulator, [16, N] patterns of 16 or 32 bits."""
    parts = values.reshape(2, 8, -1, 4, 2)  # [half, row, group, t, column]
    if values.itemsize == 2:
        ordered = np.ascontiguousarray(parts.transpose(2, 0, 1, 3, 4))
        return ordered.view(np.uint32).reshape(-1, 32)
    return np.ascontiguousarray(parts.transpose(2, 0, 4, 1, 3)).reshape(-1, 32).view(np.uint32)
