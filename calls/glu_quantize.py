"""nvfp4::glu_quantize and nvfp4::silu_mul_quantize: what an MLP does between its two GEMMs."""

from typing import NamedTuple

import torch
from torch import Tensor

from nvfp4.calls.checks import Checker
from nvfp4.calls.forms import contiguous, matrix, vector
from nvfp4.calls.grouped import zero_grouped
from nvfp4.calls.outputs import Packed, Quantized, empty_packed
from nvfp4.spec.format import BLOCK, SWIZZLED
from nvfp4.spec.glu import SILU, columns_per_output
from nvfp4.spec.scale_rules import AMAX_OVER_SIX


class GluQuantize(NamedTuple):
    """Quantize act(gate) * up, where gate_up holds gate's I columns, then up's (spec/glu.py).

    With relu2 there is no gate, and gate_up holds I columns alone.
    """

    gate_up: Tensor
    """[..., 2I] bfloat16, float16 or float32, I a multiple of 16; with offsets [R, 2I]. With relu2
    [..., I].
    """
    global_scale: Tensor | None = None
    """The result's scale: float32 [], [1], [M] for M rows, or [E] with offsets. None gives each
    row its own, amax_row / 2688, or amax_row / 1536 with four_over_six.
    """
    offsets: Tensor | None = None
    """int32 [E + 1], where each expert's rows begin; the scales are then grouped."""
    swiglu_limit: float | None = None
    """A limit L: gate becomes min(gate, L) before the activation, up is clamped to [-L, L]."""
    scale_layout: str = SWIZZLED
    """"swizzled" or "linear"."""
    scale_rule: str = AMAX_OVER_SIX
    """A rule that Quantize takes."""
    activation: str = SILU
    """"silu" (SwiGLU), "gelu_tanh" (GeGLU), "swiglu_oai" (gpt-oss) or "relu2" (no gate)."""
    backend: str = ""

    def outputs(self) -> Quantized:
        gate_up, offsets = self.gate_up, self.offsets
        check = Checker(self)
        check.layout(self.scale_layout)
        check.scale_rule(self.scale_rule)
        check.glu(self.swiglu_limit, self.activation)
        parts = columns_per_output(self.activation)
        rows, columns = check.floats("gate_up", gate_up, multiple=parts * BLOCK)
        if offsets is None:
            if self.global_scale is not None:
                check.global_scale("global_scale", self.global_scale, rows)
            packed = empty_packed(gate_up, gate_up.shape[:-1], columns // parts, self.scale_layout)
            return Quantized(*packed, gate_up.new_empty((rows,), dtype=torch.float32))
        experts = check.offsets(offsets)
        check.static_scale("global_scale", self.global_scale, experts)
        if gate_up.dim() != 2:
            check.fail("gate_up", "2 dimensions with offsets", f"shape {list(gate_up.shape)}")
        if self.scale_layout != SWIZZLED:
            check.fail("scale_layout", f"{SWIZZLED!r} with offsets", repr(self.scale_layout))
        return zero_grouped(gate_up, rows, experts, columns // parts)

    def prepared(self, out: Packed | Quantized) -> tuple["GluQuantize", Packed | Quantized]:
        """Launchers write the rows' scales where `out` has room for them."""
        call = self._replace(
            gate_up=matrix(self.gate_up),
            global_scale=vector(self.global_scale),
            offsets=contiguous(self.offsets),
        )
        return call, out._replace(data=matrix(out.data), scales=matrix(out.scales))


class SiluMulQuantize(NamedTuple):
    """Quantize silu(gate) * up by a known global scale: GluQuantize in its plainest form."""

    gate_up: Tensor
    """[..., 2I] bfloat16, float16 or float32, I a multiple of 16."""
    global_scale: Tensor
    """The product's scale: float32 [], [1], or [M], one for each row."""
    swiglu_limit: float | None = None
    """A limit L: gate becomes min(gate, L) before SiLU, up is clamped to [-L, L]."""
    scale_layout: str = SWIZZLED
    """"swizzled" or "linear"."""
    backend: str = ""

    def outputs(self) -> Packed:
        check = Checker(self)
        rows, both = check.floats("gate_up", self.gate_up, multiple=2 * BLOCK)
        check.layout(self.scale_layout)
        check.global_scale("global_scale", self.global_scale, rows)
        check.glu(self.swiglu_limit)
        return empty_packed(self.gate_up, self.gate_up.shape[:-1], both // 2, self.scale_layout)
