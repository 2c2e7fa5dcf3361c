"""The rules by which a quantizer chooses the scale of a block of 16 values.

amax_over_six (the default) puts the block's largest magnitude at 6, the top of E2M1.
four_over_six also tries to put it at 4, and keeps the scale with the smaller squared error. E2M1
has nothing between 4 and 6, so values just below the largest are often nearer to a value of the
second grid. With the global scale p, all in float32, each operation rounded once:

    enc  = 1 / p
    six  = e4m3(amax * (enc * f32(1/6)))
    four = e4m3(amax * (enc * 0.25))
    y    = x * inv                       inv as in spec/quantize.py, for each of the two scales
    d    = y - e2m1(y)
    e    = (the sum of the 16 d * d, added in pairs of neighbours) * (sf * sf)
    sf   = four if e(four) < e(six) else six

The sum is ((d0 + d1) + (d2 + d3)) + ... of the squares: a tree over neighbours. A tie takes `six`.
A block whose `six` rounds to zero keeps it, because its error counts as zero. A NaN or an infinity
takes `six` too: its errors are NaN or infinite, and no error is less than those.

Every machine gets the same bits. y and d are exact or rounded once, and the order of the sum is
fixed. |d| does not depend on how e2m1 breaks ties. Only a contraction to a fused multiply-add would
change it. The error is measured on the scaled values because a kernel has these in registers:
that of x itself would take p, and two more roundings an element.
"""

import torch
from torch import Tensor

from nvfp4.spec.format import E2M1_MAX, FLOAT32_MAX, GLOBAL_SCALE_DIVISOR, ONE_SIXTH
from nvfp4.spec.rounding import from_e2m1, from_e4m3, to_e2m1, to_e4m3

AMAX_OVER_SIX, FOUR_OVER_SIX = "amax_over_six", "four_over_six"
SCALE_RULES = (AMAX_OVER_SIX, FOUR_OVER_SIX)

FOUR_OVER_SIX_CEILING = 256.0
"""The scale of a tensor's largest block by its `six`; its `four` is then 384.

It is the largest E4M3 value whose 3/2 is one too. 448 * 2/3 is 298.7, and 288 * 3/2 = 432 is no
E4M3 value. A static global scale may be smaller, as amax / 2688 is. Then the `four` of the largest
blocks saturates at 448.
"""

GLOBAL_SCALE_DIVISORS = {
    AMAX_OVER_SIX: GLOBAL_SCALE_DIVISOR,
    FOUR_OVER_SIX: E2M1_MAX * FOUR_OVER_SIX_CEILING,
}
"""The global scale is amax divided by this: 2688, or 1536."""

ONE_QUARTER = 0.25


def inverse_scale(sf: Tensor, p: Tensor) -> Tensor:
    """The multiplier min(1 / (sf * p), FLT_MAX) of a block; 0 where sf is 0."""
    inverse = torch.div(torch.ones_like(p), sf * p).clamp_(max=FLOAT32_MAX)
    return inverse.masked_fill_(sf == 0, 0.0)


def amax_over_six(blocks: Tensor, p: Tensor) -> Tensor:
    """The E4M3 scales [m, K/16] of float32 blocks [m, K/16, 16], with p [m or 1, 1]."""
    return _scales(blocks.abs().amax(dim=-1), p, ONE_SIXTH)


def four_over_six(blocks: Tensor, p: Tensor) -> Tensor:
    """The E4M3 scales [m, K/16] of float32 blocks [m, K/16, 16], with p [m or 1, 1]."""
    amax = blocks.abs().amax(dim=-1)
    six, four = _scales(amax, p, ONE_SIXTH), _scales(amax, p, ONE_QUARTER)
    better = _error(blocks, four, p) < _error(blocks, six, p)
    return torch.where(better, four.view(torch.uint8), six.view(torch.uint8)).view(six.dtype)


RULES = {AMAX_OVER_SIX: amax_over_six, FOUR_OVER_SIX: four_over_six}


def _scales(amax: Tensor, p: Tensor, part: float) -> Tensor:
    return to_e4m3(amax * (torch.div(torch.ones_like(p), p) * part))


def _error(blocks: Tensor, scales: Tensor, p: Tensor) -> Tensor:
    """The squared error of each block in units of p, up to a factor: float32 [m, K/16]."""
    sf = from_e4m3(scales)
    y = blocks * inverse_scale(sf, p).unsqueeze(-1)
    total = (y - from_e2m1(to_e2m1(y))).square_()
    while total.shape[-1] > 1:
        total = total[..., 0::2] + total[..., 1::2]
    return total.squeeze(-1) * (sf * sf)
