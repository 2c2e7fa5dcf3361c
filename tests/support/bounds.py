"""How far a GEMM's result may be from the exact one, derived from K and the output's dtype."""

import torch
from torch import Tensor

ACCUMULATOR_STEP = 2.0**-23
"""One addition into a float32 accumulator: an ulp, since tensor cores may truncate instead of
rounding.
"""


def gemm_bound(
    a: Tensor, b: Tensor, alpha: Tensor, exact: Tensor, out_dtype: torch.dtype
) -> Tensor:
    """|got - exact| allowed, [M, N] float64; a [M, K], b [N, K] exact float64 operands.

    Each of the K products enters the accumulator once, costing at most one step of the sum of
    magnitudes; alpha, its product and the bias are three float32 roundings; the output one more.
    """
    magnitude = (a.abs() @ b.abs().T) * alpha.abs()
    accumulation = a.shape[1] * ACCUMULATOR_STEP * magnitude
    epilogue = 3 * torch.finfo(torch.float32).eps * (magnitude + exact.abs())
    output = (
        torch.finfo(out_dtype).eps / 2 * (exact.abs() + accumulation) + torch.finfo(out_dtype).tiny
    )
    return accumulation + epilogue + output
