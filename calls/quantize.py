"""nvfp4::quantize, nvfp4::quantize_dynamic and nvfp4::dequantize."""

from typing import NamedTuple

import torch
from torch import Tensor

from nvfp4.calls.checks import Checker
from nvfp4.calls.forms import matrix, vector
from nvfp4.calls.outputs import Packed, Quantized, empty_packed
from nvfp4.spec.format import SWIZZLED
from nvfp4.spec.packing import as_bytes
from nvfp4.spec.scale_rules import AMAX_OVER_SIX


class Quantize(NamedTuple):
    """Quantize x along its last dimension by a known global scale."""

    x: Tensor
    """[..., K] bfloat16, float16 or float32, K a multiple of 16."""
    global_scale: Tensor
    """The decode multiplier p: float32 [], [1], or [M], one for each row."""
    scale_layout: str = SWIZZLED
    """"swizzled" (what GEMMs read) or "linear" (what checkpoints hold)."""
    scale_rule: str = AMAX_OVER_SIX
    """"amax_over_six" puts each block's largest magnitude at 6. "four_over_six" puts it at 6 or at
    4, whichever has the smaller squared error (spec/scale_rules.py).
    """
    backend: str = ""

    def outputs(self) -> Packed:
        check = Checker(self)
        rows, k = check.floats("x", self.x)
        check.layout(self.scale_layout)
        check.scale_rule(self.scale_rule)
        check.global_scale("global_scale", self.global_scale, rows)
        return empty_packed(self.x, self.x.shape[:-1], k, self.scale_layout)

    def prepared(self, out: Packed) -> tuple["Quantize", Packed]:
        call = self._replace(x=matrix(self.x), global_scale=vector(self.global_scale))
        return call, Packed(matrix(out.data), matrix(out.scales))


class QuantizeDynamic(NamedTuple):
    """Quantize x, each of its M rows by a global scale of its own: amax_row / 2688, or amax_row /
    1536 with four_over_six.
    """

    x: Tensor
    """[..., K] bfloat16, float16 or float32, K a multiple of 16."""
    scale_layout: str = SWIZZLED
    """"swizzled" or "linear"."""
    scale_rule: str = AMAX_OVER_SIX
    """A rule that Quantize takes."""
    backend: str = ""

    def outputs(self) -> Quantized:
        check = Checker(self)
        rows, k = check.floats("x", self.x)
        check.layout(self.scale_layout)
        check.scale_rule(self.scale_rule)
        packed = empty_packed(self.x, self.x.shape[:-1], k, self.scale_layout)
        return Quantized(*packed, self.x.new_empty((rows,), dtype=torch.float32))

    def prepared(self, out: Quantized) -> tuple["QuantizeDynamic", Quantized]:
        outputs = Quantized(matrix(out.data), matrix(out.scales), out.row_scale)
        return self._replace(x=matrix(self.x)), outputs


class Dequantize(NamedTuple):
    """Compute the values e2m1 * scale * global_scale of packed data."""

    data: Tensor
    """uint8 or float4_e2m1fn_x2 [..., K/2]."""
    scales: Tensor
    """float8_e4m3fn in the layout named."""
    global_scale: Tensor
    """float32 [], [1] or [M]."""
    out_dtype: torch.dtype | None = None
    """bfloat16 (also by default), float16 or float32."""
    scale_layout: str = SWIZZLED
    """"swizzled" or "linear"."""
    backend: str = ""

    def outputs(self) -> Tensor:
        check = Checker(self)
        rows, k = check.packed("data", self.data)
        shape = (*self.data.shape[:-1], k)
        check.layout(self.scale_layout)
        check.scales("scales", self.scales, shape, self.scale_layout)
        check.global_scale("global_scale", self.global_scale, rows)
        check.out_dtype(self.out_dtype)
        return self.data.new_empty(shape, dtype=self.out_dtype or torch.bfloat16)

    def prepared(self, out: Tensor) -> tuple["Dequantize", Tensor]:
        call = self._replace(
            data=matrix(as_bytes(self.data)),
            scales=matrix(self.scales.contiguous()),
            global_scale=vector(self.global_scale),
        )
        return call, matrix(out)
