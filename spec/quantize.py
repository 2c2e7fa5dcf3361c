"""The quantization recipe, and its inverse, on 2-D tensors.

All arithmetic is float32. Each operation is rounded once, and none is contracted to an FMA. With
the global scale p:

    enc  = 1 / p
    sf   = e4m3(amax_block * (enc * f32(1/6)))         no lower clamp: a zero block has scale 0x00
    inv  = 0 if sf == 0 else min(1 / (sf * p), FLT_MAX)
    code = e2m1(x * inv)

This is the default rule for the block scales; scale_rules.py has the other, with the same `inv` and
`code`.

The order of the multiplications is that of TransformerEngine, cuBLAS and CUTLASS. Another order
changes 0.1 to 0.5 % of the scale bytes. A NaN in x makes its block NaN (scale 0x7F, codes 0x7).
+-Inf saturates its block (scale 448, code +-6).
"""

import functools
from collections.abc import Callable, Iterator

import torch
from torch import Tensor

from nvfp4.spec.format import (
    BLOCK,
    DATA_DTYPE,
    FLOAT32_MAX,
    FLOAT32_MIN_NORMAL,
    NAN_BLOCK_CODE,
    SCALE_DTYPE,
)
from nvfp4.spec.packing import pack, unpack
from nvfp4.spec.rounding import from_e2m1, from_e4m3, round_to_e2m1, to_e2m1
from nvfp4.spec.scale_rules import (
    AMAX_OVER_SIX,
    GLOBAL_SCALE_DIVISORS,
    RULES,
    inverse_scale,
)

CHUNK = 1 << 20
"""The number of elements quantized at a time, so that temporaries of large tensors stay small."""


def row_chunks(rows: int, k: int) -> Iterator[slice]:
    """Yield slices of the rows of a [rows, k] tensor that hold about CHUNK elements each."""
    step = max(1, CHUNK // max(k, 1))
    for start in range(0, rows, step):
        yield slice(start, min(start + step, rows))


def _finite_magnitude(x: Tensor) -> Tensor:
    """|x| in float32 with NaN as 0 and Inf as FLT_MAX, so that p is valid."""
    return x.float().abs().nan_to_num_(nan=0.0, posinf=FLOAT32_MAX)


def global_scale_of_amax(amax: Tensor, scale_rule: str = AMAX_OVER_SIX) -> Tensor:
    """The global scale p = amax / 2688, at least the smallest normal number; 1 where amax is 0."""
    # Divide by a tensor: on CUDA, torch divides by a number by multiplying with its inverse.
    divisor = torch.full_like(amax, GLOBAL_SCALE_DIVISORS[scale_rule])
    p = torch.div(amax, divisor).clamp_(min=FLOAT32_MIN_NORMAL)
    return torch.where(amax == 0, torch.ones_like(p), p)


def global_scale(x: Tensor, scale_rule: str = AMAX_OVER_SIX) -> Tensor:
    """The global scale of x [...], any float dtype: amax / 2688, float32 [], on x's device.

    With scale_rule="four_over_six" it is amax / 1536, which leaves room for larger block scales.
    It is 1 for zeros. NaN counts as 0 and Inf as the largest float32. Nothing waits for a GPU.
    """
    amax = torch.zeros((), dtype=torch.float32, device=x.device)
    flat = x.reshape(1, -1) if x.dim() < 2 else x.reshape(-1, x.shape[-1])
    for rows in row_chunks(*flat.shape):
        if flat[rows].numel():
            amax = torch.maximum(amax, _finite_magnitude(flat[rows]).amax())
    return global_scale_of_amax(amax, scale_rule)


def row_global_scales_of(
    rows_of: Callable[[slice], Tensor], like: Tensor, k: int, scale_rule: str = AMAX_OVER_SIX
) -> Tensor:
    """One global scale per row, float32 [M], of a tensor [M, k] that `rows_of` makes row by row.

    M and the device are those of `like`.
    """
    amax = torch.empty(like.shape[0], dtype=torch.float32, device=like.device)
    for rows in row_chunks(like.shape[0], k):
        amax[rows] = _finite_magnitude(rows_of(rows)).amax(dim=1)
    return global_scale_of_amax(amax, scale_rule)


def row_global_scales(x: Tensor, scale_rule: str = AMAX_OVER_SIX) -> Tensor:
    """One global scale per row of x [M, K]: float32 [M]."""
    return row_global_scales_of(lambda rows: x[rows], x, x.shape[1], scale_rule)


def encode(x: Tensor, scales: Tensor, p: Tensor) -> Tensor:
    """Encode float32 [m, K] by scales E4M3 [m, K/16] and p [m or 1, 1]: data uint8 [m, K/2].

    A block whose scale is NaN becomes NaN.
    """
    sf = from_e4m3(scales)
    codes = to_e2m1(x.view(x.shape[0], -1, BLOCK) * inverse_scale(sf, p).unsqueeze(-1))
    codes.masked_fill_(sf.isnan().unsqueeze(-1), NAN_BLOCK_CODE)
    return pack(codes.view(x.shape))


def _quantize_chunk(x: Tensor, p: Tensor, scale_rule: str) -> tuple[Tensor, Tensor]:
    """Quantize float32 [m, K] with p [m or 1, 1]: data uint8 [m, K/2], scales E4M3 [m, K/16]."""
    scales = RULES[scale_rule](x.view(x.shape[0], -1, BLOCK), p)
    return encode(x, scales, p), scales


def quantize_rows(
    rows_of: Callable[[slice], Tensor], p: Tensor, data: Tensor, scale_rule: str = AMAX_OVER_SIX
) -> Tensor:
    """Quantize a tensor [M, K] of any float dtype that `rows_of` makes row by row.

    p is float32 [1] or [M]. Writes data uint8 [M, K/2], and returns the linear scales float8_e4m3fn
    [M, K/16]. CHUNK bounds the temporaries, so the peak is the outputs and a few megabytes.
    """
    rows, k = data.shape[0], 2 * data.shape[1]
    scales = torch.empty(rows, k // BLOCK, dtype=SCALE_DTYPE, device=data.device)
    p = p.view(-1, 1)
    for chunk in row_chunks(rows, k):
        p_chunk = p if p.shape[0] == 1 else p[chunk]
        x = rows_of(chunk).float().contiguous()
        data[chunk], scales[chunk] = _quantize_chunk(x, p_chunk, scale_rule)
    return scales


def quantize(x: Tensor, p: Tensor, data: Tensor, scale_rule: str = AMAX_OVER_SIX) -> Tensor:
    """Quantize x [M, K] into data [M, K/2] and return the linear scales; see quantize_rows."""
    return quantize_rows(lambda rows: x[rows], p, data, scale_rule)


@functools.cache
def _pairs(device: torch.device) -> Tensor:
    """The two float32 values of every byte, as the bits of a float64 [256].

    They are copied and never computed with. Looking them up is many times faster than making them
    from bits.
    """
    each = torch.arange(256, dtype=DATA_DTYPE, device=device)
    return from_e2m1(unpack(each[:, None])).view(torch.float64).view(256)


def decode(data: Tensor, scales: Tensor) -> Tensor:
    """Decode data [M, K/2] and linear scales [M, K/16] to e2m1 * sf, exact in float32 [M, K]."""
    pairs = _pairs(data.device).index_select(0, data.reshape(-1).int())
    values = pairs.view(torch.float32).view(data.shape[0], -1, BLOCK)
    return values.mul_(from_e4m3(scales).unsqueeze(-1)).view(data.shape[0], -1)


def dequantize(data: Tensor, scales: Tensor, p: Tensor, out: Tensor) -> None:
    """Dequantize data [M, K/2], linear scales [M, K/16] and p [1] or [M] to out [M, K], any float.

    e2m1 * sf is exact. Its product with p is rounded to float32, then once more to out's dtype.
    """
    p = p.view(-1, 1)
    for chunk in row_chunks(*out.shape):
        p_chunk = p if p.shape[0] == 1 else p[chunk]
        out[chunk] = decode(data[chunk], scales[chunk]).mul_(p_chunk)


def rounded(x: Tensor, scales: Tensor, p: Tensor) -> Tensor:
    """Compute what `encode` and `dequantize` make of x, without packing: float32 [m, K]."""
    sf = from_e4m3(scales)
    values = round_to_e2m1(x.view(x.shape[0], -1, BLOCK) * inverse_scale(sf, p).unsqueeze(-1))
    return values.mul_(sf.unsqueeze(-1)).view(x.shape).mul_(p)


def round_trip(x: Tensor, p: Tensor | None = None, scale_rule: str = AMAX_OVER_SIX) -> Tensor:
    """Quantize float32 x [M, K] and decode it again: float32 [M, K].

    p is float32 [] or [1]; None quantizes each row by its own global scale.
    """
    p = (row_global_scales(x, scale_rule) if p is None else p).view(-1, 1)
    out = torch.empty_like(x)
    for rows in row_chunks(*x.shape):
        part, p_part = x[rows].contiguous(), p if len(p) == 1 else p[rows]
        scales = RULES[scale_rule](part.view(part.shape[0], -1, BLOCK), p_part)
        out[rows] = rounded(part, scales, p_part)
    return out
