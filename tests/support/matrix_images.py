"""Matrices in shared memory as descriptors of wgmma and tcgen05 name them, byte by byte."""

import numpy as np
import torch

WIDTHS = {0: 16, 3: 32, 2: 64, 1: 128}
"""The bytes of a swizzled row, by the descriptor's mode."""


def place(row: int, byte: int, mode: int) -> int:
    """Where a byte of a row lies in 8 rows of a K-major matrix: its 16-byte chunk is xored with the
    number of the 128 bytes in 1 KB, as far as the swizzle has bits for it.
    """
    width = WIDTHS[mode]
    at = row * width + byte
    return at ^ (at // 128 % 8 & width // 16 - 1) * 16


def k_major(codes: np.ndarray, mode: int, leading: int, stride: int, start: int = 0) -> np.ndarray:
    """The bytes of a [rows, 32 bytes] matrix at `start` bytes in a row."""
    image = np.zeros(16384, np.uint8)
    for row, data in enumerate(codes.view(np.uint8)):
        for byte, value in enumerate(data):
            if mode == 0:
                at = row // 8 * stride + row % 8 * 16 + byte // 16 * leading + byte % 16
            else:
                at = row // 8 * stride + place(row % 8, start + byte, mode)
            image[at] = value
    return image


def mn_major(codes: np.ndarray, mode: int, leading: int, stride: int) -> np.ndarray:
    """The bytes of a [16, rows] matrix: groups of 8 k, rows of so many bytes along M or N."""
    image = np.zeros(16384, np.uint8)
    width = WIDTHS[mode]
    for k, data in enumerate(codes.view(np.uint8)):
        for byte, value in enumerate(data):
            if mode == 0:
                at = byte // 16 * stride + k // 8 * leading + k % 8 * 16 + byte % 16
            else:
                at = byte // width * leading + k // 8 * stride + place(k % 8, byte % width, mode)
            image[at] = value
    return image


HALF = {"f16": torch.float16, "bf16": torch.bfloat16}


def integers(seed: int, shape: tuple[int, int], kind: str) -> tuple[np.ndarray, np.ndarray]:
    """Small integers as float64, and their codes."""
    values = np.random.default_rng(seed).integers(-5, 6, shape).astype(np.float64)
    if kind == "tf32":
        return values, values.astype(np.float32).view(np.uint32)
    if kind == "s8":
        return values, values.astype(np.int8).view(np.uint8)
    dtype = HALF.get(kind, torch.float8_e4m3fn)
    codes = torch.from_numpy(values).to(dtype)
    return values, codes.view(torch.uint8).numpy().view(f"u{codes.element_size()}").reshape(shape)
