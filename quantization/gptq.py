"""GPTQ with NVFP4 blocks: columns are rounded one by one, and later ones make up for the error.

The loss is sum((w - q) H (w - q)^T) over rows, where H is the sum of x^T x over calibration inputs
x. U is the upper Cholesky factor of the inverse of H. The error of column j, e = (w_j - q_j) /
U_jj, is made up for by subtracting e U_jk from every later column k (Frantar et al., 2022).

A block's scale is chosen when its first column is reached, by best_scales on the columns as they
are by then. Each column's squared error is weighed by 1 / U_jj^2, which is what it costs in the
loss.
"""

import torch
from torch import Tensor

from nvfp4.quantization.mse import best_scales
from nvfp4.spec.format import BLOCK, SCALE_DTYPE
from nvfp4.spec.quantize import encode
from nvfp4.spec.rounding import from_e4m3, round_to_e2m1
from nvfp4.spec.scale_rules import inverse_scale

DAMPING = 0.01
"""The share of the mean of H's diagonal that is added to it, so that H has an inverse."""

BATCH = 128
"""The number of columns whose errors reach the columns behind them in one matrix product."""


def gptq(
    w: Tensor,
    hessian: Tensor,
    p: Tensor,
    damping: float = DAMPING,
    act_order: bool = False,
) -> tuple[Tensor, Tensor]:
    """Quantize float32 w [N, K] with p [N or 1, 1]: data uint8 [N, K/2], scales E4M3 [N, K/16].

    hessian: float32 or float64 [K, K]. act_order: take the blocks of K by falling diagonal of H,
    rather than from left to right; the 16 columns of a block stay together.
    """
    n, k = w.shape
    order = _blocks_in_order(hessian) if act_order else torch.arange(k, device=w.device)
    back = torch.argsort(order)
    factor = _factor(hessian[order][:, order], damping)
    columns = w.T[order].contiguous()  # [K, N]: a column's elements are side by side
    scales = torch.empty(k // BLOCK, n, dtype=SCALE_DTYPE, device=w.device)
    for start in range(0, k, BATCH):
        batch = columns[start : start + BATCH]
        errors = torch.empty_like(batch)
        u = factor[start : start + len(batch), start : start + len(batch)]
        for first in range(0, len(batch), BLOCK):
            part = slice(first, first + BLOCK)
            chosen = _round_block(batch[part], errors[part], u[part, part], p)
            scales[(start + first) // BLOCK] = chosen
            batch[first + BLOCK :] -= u[part, first + BLOCK :].T @ errors[part]
        rest = slice(start + len(batch), k)
        columns[rest] -= factor[start : start + len(batch), rest].T @ errors
    scales = scales[back[::BLOCK] // BLOCK].T.contiguous()
    return encode(columns[back].T.contiguous(), scales, p), scales


def _round_block(block: Tensor, errors: Tensor, u: Tensor, p: Tensor) -> Tensor:
    """Round the 16 columns of block [16, N] in turn; return its scales E4M3 [N].

    Each column is left in place as it was when it was rounded. Writes errors [16, N].
    """
    weight = u.diagonal().square().reciprocal().view(1, BLOCK)
    scales = best_scales(block.T.unsqueeze(1).contiguous(), p, weight).squeeze(1)
    sf = from_e4m3(scales).unsqueeze(1)
    inverse, step = inverse_scale(sf, p).squeeze(1), (sf * p).squeeze(1)
    for j in range(BLOCK):
        rounded = round_to_e2m1(block[j] * inverse).mul_(step)
        torch.div(block[j] - rounded, u[j, j], out=errors[j])
        block[j + 1 :].addcmul_(u[j, j + 1 :].unsqueeze(1), errors[j], value=-1)
    return scales


def _blocks_in_order(hessian: Tensor) -> Tensor:
    """The columns, 16 by 16, in the order of their blocks' summed diagonals, largest first."""
    columns = torch.arange(len(hessian), device=hessian.device).view(-1, BLOCK)
    return columns[hessian.diagonal().view(-1, BLOCK).sum(1).argsort(descending=True)].flatten()


def _factor(hessian: Tensor, damping: float) -> Tensor:
    """The upper Cholesky factor of the inverse of the damped H, float32 [K, K]."""
    h = hessian.double()
    mean = h.diagonal().mean()
    h.diagonal().add_(torch.where(mean > 0, damping * mean, torch.ones_like(mean)))
    inverse = torch.cholesky_inverse(torch.linalg.cholesky(h))
    return torch.linalg.cholesky(inverse, upper=True).float()
