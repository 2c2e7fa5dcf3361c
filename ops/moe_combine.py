"""nvfp4::moe_combine: the experts' rows back to tokens, weighted.

Deterministic: a token's sum is over its own choices, in their order, in float32.
"""

import torch
from torch import Tensor

from nvfp4.dispatch import launcher
from nvfp4.ops.checks import Checker, matrix
from nvfp4.ops.library import define
from nvfp4.spec.format import FLOAT_DTYPES

SIGNATURE = """(Tensor y, Tensor topk_weights, Tensor positions, ScalarType? out_dtype=None,
    str backend="") -> Tensor"""


def check_weights(check: Checker, topk_weights: Tensor, like: Tensor) -> None:
    """One weight a choice: [M, top_k] as `like`."""
    check.tensor("topk_weights", topk_weights, FLOAT_DTYPES)
    check.shape("topk_weights", topk_weights, like.shape)


def _outputs(
    y: Tensor,
    topk_weights: Tensor,
    positions: Tensor,
    out_dtype: torch.dtype | None = None,
    backend: str = "",
) -> Tensor:
    check = Checker("moe_combine", y)
    check.floats("y", y, multiple=1)
    if y.dim() != 2:
        check.fail("y", "2 dimensions", f"shape {list(y.shape)}")
    check.tensor("positions", positions, (torch.int32,))
    if positions.dim() != 2 or positions.shape[0] * positions.shape[1] != y.shape[0]:
        need = f"shape [M, top_k] with M * top_k = {y.shape[0]} (y's rows)"
        check.fail("positions", need, f"shape {list(positions.shape)}")
    check_weights(check, topk_weights, positions)
    check.out_dtype(out_dtype)
    return y.new_empty((positions.shape[0], y.shape[1]), dtype=out_dtype or y.dtype)


def _run(
    y: Tensor,
    topk_weights: Tensor,
    positions: Tensor,
    out_dtype: torch.dtype | None = None,
    backend: str = "",
) -> Tensor:
    out = _outputs(y, topk_weights, positions, out_dtype)
    launch = launcher("moe_combine", y.device, backend)
    if out.numel():
        launch(matrix(y), topk_weights.contiguous(), positions.contiguous(), out)
    return out


define("moe_combine", SIGNATURE, _outputs, _run)


def moe_combine(
    y: Tensor,
    topk_weights: Tensor,
    positions: Tensor,
    out_dtype: torch.dtype | None = None,
    backend: str = "",
) -> Tensor:
    """out[t] = sum over j of topk_weights[t, j] * y[positions[t, j]]: [M, N].

    Args:
        y: [R, N] bfloat16, float16 or float32, R = M * top_k expert-major rows.
        topk_weights: [M, top_k], any float dtype. A weight whose position is -1 is not read:
            a padded token's NaN does no harm.
        positions: int32 [M, top_k], of moe_dispatch. A choice whose position is not a row of y, 0
            to R - 1, adds nothing.
        out_dtype: default y's.

    Products and sums are float32, each rounded, in the order of j; one rounding to out_dtype.
    """
    return torch.ops.nvfp4.moe_combine(y, topk_weights, positions, out_dtype, backend)
