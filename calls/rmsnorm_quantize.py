"""nvfp4::rmsnorm_quantize: residual add, RMSNorm and quantization in one pass."""

from typing import NamedTuple

import torch
from torch import Tensor

from nvfp4.calls.checks import Checker
from nvfp4.calls.forms import contiguous, matrix, vector
from nvfp4.calls.outputs import Normalized, empty_packed
from nvfp4.spec.format import SWIZZLED
from nvfp4.spec.rmsnorm import SMALLEST_EPS
from nvfp4.spec.scale_rules import AMAX_OVER_SIX


class RmsnormQuantize(NamedTuple):
    """Quantize RMSNorm(x + residual) * weight, computed in float32 (spec/rmsnorm.py)."""

    x: Tensor
    """[..., K] bfloat16, float16 or float32, K a multiple of 16."""
    weight: Tensor
    """[K] bfloat16, float16 or float32."""
    eps: float
    """A positive number, added to the mean of the squares; at least 2^-126."""
    residual: Tensor | None = None
    """It has x's shape and dtype. The sum, rounded to that dtype, is normalized and returned."""
    global_scale: Tensor | None = None
    """The normalized rows' scale: float32 [], [1] or [M] for M rows. None gives each row its own,
    amax_row / 2688, or amax_row / 1536 with four_over_six.
    """
    scale_layout: str = SWIZZLED
    """"swizzled" or "linear"."""
    scale_rule: str = AMAX_OVER_SIX
    """A rule that Quantize takes."""
    backend: str = ""

    def outputs(self) -> Normalized:
        """Check and allocate; the sum is empty, [0], where there is no residual."""
        x, residual = self.x, self.residual
        check = Checker(self)
        rows, k = check.floats("x", x)
        check.row_vector("weight", self.weight, k)
        if not SMALLEST_EPS <= self.eps < float("inf"):
            check.fail("eps", "a finite number of at least 2^-126", self.eps)
        check.layout(self.scale_layout)
        check.scale_rule(self.scale_rule)
        if residual is not None:
            check.tensor("residual", residual, (x.dtype,))
            check.shape("residual", residual, x.shape, "x's shape")
        if self.global_scale is not None:
            check.global_scale("global_scale", self.global_scale, rows)
        packed = empty_packed(x, x.shape[:-1], k, self.scale_layout)
        row_scale = x.new_empty((rows,), dtype=torch.float32)
        return Normalized(*packed, row_scale, x.new_empty((0,) if residual is None else x.shape))

    def prepared(self, out: Normalized) -> tuple["RmsnormQuantize", Normalized]:
        call = self._replace(
            x=matrix(self.x),
            weight=contiguous(self.weight),
            residual=None if self.residual is None else matrix(self.residual),
            global_scale=vector(self.global_scale),
        )
        outputs = Normalized(
            matrix(out.data), matrix(out.scales), out.row_scale, matrix(out.residual)
        )
        return call, outputs
