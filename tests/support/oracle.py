"""An independent NVFP4: tables and float64, sharing no code with the package.

Rounding is a search for the nearest table entry (ties to the even code); the recipe's intermediate
products are numpy float32, as the specification says.
"""

from typing import NamedTuple

import numpy as np
import numpy.typing as npt

F32 = np.float32
E2M1 = np.array([0, 0.5, 1, 1.5, 2, 3, 4, 6], dtype=np.float64)


def _e4m3_value(byte: int) -> float:
    exponent, mantissa = byte >> 3 & 15, byte & 7
    if byte & 0x7F == 0x7F:
        return float("nan")
    magnitude = (
        mantissa / 8 * 2.0**-6 if exponent == 0 else (1 + mantissa / 8) * 2.0 ** (exponent - 7)
    )
    return -magnitude if byte & 0x80 else magnitude


E4M3 = np.array([_e4m3_value(byte) for byte in range(256)])


def nearest(values: npt.NDArray, table: npt.NDArray) -> npt.NDArray:
    """Index of the entry of an increasing table nearest to each value; of two, the even index."""
    values = np.minimum(np.asarray(values, np.float64), table[-1])[..., None]
    distance = np.abs(values - table)
    best = distance.min(-1, keepdims=True)
    candidates = distance == best
    even = candidates & (np.arange(len(table)) % 2 == 0)
    return np.where(candidates.sum(-1) > 1, even.argmax(-1), candidates.argmax(-1))


class Scaled(NamedTuple):
    """A block in one scale: the scale's byte, the codes 0..15, and the error of four_over_six."""

    byte: int
    codes: npt.NDArray
    error: np.float32


def scaled(values: npt.NDArray, p: np.float32, top: int) -> Scaled:
    """A block of float32 [16], not NaN, in the scale that puts its largest magnitude at `top`."""
    enc = F32(1) / F32(p)
    byte = int(nearest(np.abs(values).max() * (enc * F32(1 / top)), E4M3[:0x7F]))
    sf, inverse = F32(E4M3[byte]), F32(0)
    if byte:
        inverse = min(F32(1) / F32(sf * F32(p)), np.finfo(F32).max)
    y = values * F32(inverse)
    magnitudes = nearest(np.abs(y), E2M1)
    squares = (np.abs(y) - E2M1[magnitudes].astype(F32)) ** 2
    while len(squares) > 1:
        squares = squares[0::2] + squares[1::2]
    return Scaled(byte, magnitudes + 8 * np.signbit(y), squares[0] * (sf * sf))


def quantize(
    x: npt.NDArray, p: npt.NDArray, four_over_six: bool = False
) -> tuple[npt.NDArray, npt.NDArray]:
    """float32 x [M, K], p [M] -> codes [M, K] 0..15, scale bytes [M, K/16]."""
    m, k = x.shape
    codes, scales = np.zeros((m, k), np.uint8), np.zeros((m, k // 16), np.uint8)
    with np.errstate(all="ignore"):
        for row in range(m):
            for block in range(k // 16):
                values = x[row, 16 * block : 16 * block + 16].astype(F32)
                at = (row, slice(16 * block, 16 * block + 16))
                if np.isnan(values).any():
                    scales[row, block], codes[at] = 0x7F, 0x7
                    continue
                best = scaled(values, p[row], 6)
                if four_over_six and (four := scaled(values, p[row], 4)).error < best.error:
                    best = four
                scales[row, block], codes[at] = best.byte, best.codes
    return codes, scales


def row_global_scale(x: npt.NDArray, largest_scale: int = 448) -> npt.NDArray:
    """float32 x [M, K] -> p [M]."""
    magnitude = np.minimum(
        np.nan_to_num(np.abs(x.astype(F32)), nan=0, posinf=np.inf), np.finfo(F32).max
    )
    amax = magnitude.max(-1).astype(F32)
    p = np.maximum(amax / F32(6 * largest_scale), np.finfo(F32).tiny).astype(F32)
    return np.where(amax == 0, F32(1), p)


def rms_norm(h: npt.NDArray, weight: npt.NDArray, eps: float) -> npt.NDArray:
    """float32 h [M, K], weight [K] -> float32 [M, K]; the squares are added as a tree halves."""

    def tree(squares: npt.NDArray, width: int) -> npt.NDArray:
        """The sum over `width` columns, a power of two, of which those that are there count."""
        if squares.shape[1] == 0 or width == 1:
            return squares.sum(1, dtype=F32) if width == 1 else np.zeros(len(squares), F32)
        left, right = squares[:, : width // 2], squares[:, width // 2 :]
        return tree(left, width // 2) + tree(right, width // 2)

    with np.errstate(all="ignore"):
        h = h.astype(F32)
        width = 1 << (h.shape[1] - 1).bit_length()
        mean = (tree(h * h, width) / F32(h.shape[1])).astype(F32)
        inverse = F32(1) / np.sqrt(mean + F32(eps))
        return (h * inverse[:, None]) * weight.astype(F32)


def pack(codes: npt.NDArray) -> npt.NDArray:
    return (codes[..., 0::2] | codes[..., 1::2] << 4).astype(np.uint8)


def swizzle(scales: npt.NDArray) -> npt.NDArray:
    """Byte by byte, from the offset formula."""
    m, ksf = scales.shape
    mp, kp = -(-m // 128) * 128, -(-ksf // 4) * 4
    out = np.zeros(mp * kp, np.uint8)
    for i in range(m):
        for j in range(ksf):
            out[
                ((i // 128) * (kp // 4) + j // 4) * 512 + (i % 32) * 16 + (i // 32 % 4) * 4 + j % 4
            ] = scales[i, j]
    return out.reshape(mp, kp)


def decode(data: npt.NDArray, scales: npt.NDArray) -> npt.NDArray:
    """data [M, K/2], linear scale bytes [M, K/16] -> e2m1 * sf in float64 [M, K]."""
    codes = np.stack([data & 15, data >> 4], -1).reshape(len(data), -1)
    signed = np.where(codes & 8, -E2M1[codes & 7], E2M1[codes & 7])
    return signed * np.repeat(E4M3[scales], 16, axis=-1)


def silu_mul(gate: npt.NDArray, up: npt.NDArray, limit: float | None) -> npt.NDArray:
    gate, up = gate.astype(np.float64), up.astype(np.float64)
    if limit is not None:
        gate, up = np.minimum(gate, limit), np.clip(up, -limit, limit)
    return gate / (1 + np.exp(-gate)) * up
