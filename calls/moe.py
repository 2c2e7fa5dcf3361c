"""nvfp4::moe, and its first and last stage, nvfp4::moe_dispatch and nvfp4::moe_combine."""

from typing import NamedTuple

import torch
from torch import Tensor

from nvfp4.calls.checks import ID_DTYPES, Checker
from nvfp4.calls.forms import contiguous, matrix, vector
from nvfp4.calls.grouped import empty_grouped, zero_grouped
from nvfp4.calls.outputs import Dispatched, Quantized
from nvfp4.spec.format import W4A4
from nvfp4.spec.glu import SILU
from nvfp4.spec.packing import as_bytes
from nvfp4.spec.scale_rules import AMAX_OVER_SIX


class MoeDispatch(NamedTuple):
    """Gather tokens into the rows of their experts, quantized on the way.

    Sizes follow from shapes alone: R = M * top_k rows, and scale tiles for any offsets. Within an
    expert, rows are in the order of tokens.
    """

    x: Tensor
    """[M, H] bfloat16, float16 or float32, H a multiple of 16."""
    topk_ids: Tensor
    """int32 or int64 [M, top_k]. An id outside [expert_offset, expert_offset + num_experts), such
    as -1, takes no row.
    """
    num_experts: int
    """How many experts are here, E."""
    x_global_scale: Tensor | None = None
    """A static scale, float32 [] or [1]; None gives each token its own."""
    expert_offset: int = 0
    """The id of the first expert that is here."""
    scale_rule: str = AMAX_OVER_SIX
    """A rule that Quantize takes."""
    backend: str = ""

    def outputs(self) -> Dispatched:
        check = Checker(self)
        m, k = _check_tokens(check, self.x, self.topk_ids)
        check.experts("num_experts", self.num_experts)
        check.static_scale("x_global_scale", self.x_global_scale)
        check.scale_rule(self.scale_rule)
        rows = m * self.topk_ids.shape[1]
        return self._with_routing(zero_grouped(self.x, rows, self.num_experts, k))

    def empty(self) -> Dispatched:
        """Unwritten outputs, for a stage of another op."""
        rows, k = self.topk_ids.numel(), self.x.shape[1]
        return self._with_routing(empty_grouped(self.x, rows, self.num_experts, k))

    def prepared(self, out: Dispatched) -> tuple["MoeDispatch", Dispatched]:
        call = self._replace(
            x=matrix(self.x),
            topk_ids=self.topk_ids.contiguous(),
            x_global_scale=vector(self.x_global_scale),
        )
        return call, out

    def _with_routing(self, rows: Quantized) -> Dispatched:
        ids = self.topk_ids
        offsets = ids.new_empty((self.num_experts + 1,), dtype=torch.int32)
        return Dispatched(*rows, offsets, ids.new_empty(ids.shape, dtype=torch.int32))


class MoeCombine(NamedTuple):
    """out[t] = sum over j of topk_weights[t, j] * y[positions[t, j]].

    Products and sums are float32, each rounded, in the order of j; one rounding gives out_dtype.
    """

    y: Tensor
    """[R, N] bfloat16, float16 or float32, R = M * top_k rows, expert after expert."""
    topk_weights: Tensor
    """[M, top_k], any float dtype. A weight whose position is -1 is not read."""
    positions: Tensor
    """int32 [M, top_k]. A choice whose position is no row of y adds nothing."""
    out_dtype: torch.dtype | None = None
    """bfloat16, float16 or float32; None: y's."""
    backend: str = ""

    def outputs(self) -> Tensor:
        y, positions = self.y, self.positions
        check = Checker(self)
        check.floats("y", y, multiple=1)
        if y.dim() != 2:
            check.fail("y", "2 dimensions", f"shape {list(y.shape)}")
        check.tensor("positions", positions, (torch.int32,))
        if positions.dim() != 2 or positions.shape[0] * positions.shape[1] != y.shape[0]:
            need = f"shape [M, top_k] with M * top_k = {y.shape[0]} (y's rows)"
            check.fail("positions", need, f"shape {list(positions.shape)}")
        check.weight_per_choice(self.topk_weights, positions)
        check.out_dtype(self.out_dtype)
        return y.new_empty((positions.shape[0], y.shape[1]), dtype=self.out_dtype or y.dtype)

    def prepared(self, out: Tensor) -> tuple["MoeCombine", Tensor]:
        call = self._replace(
            y=matrix(self.y),
            topk_weights=self.topk_weights.contiguous(),
            positions=self.positions.contiguous(),
        )
        return call, out


class Moe(NamedTuple):
    """out[t] = sum over j of topk_weights[t, j] * down(act(gate(x[t])) * up(x[t])) of expert
    topk_ids[t, j] - expert_offset: [M, H] in x's dtype.

    With relu2 there is no gate: an expert is down(max(up(x), 0)^2).
    """

    x: Tensor
    """[M, H] bfloat16, float16 or float32, H a multiple of 16. The first GEMM's result is rounded
    to this dtype too.
    """
    topk_weights: Tensor
    """[M, top_k], any float dtype."""
    topk_ids: Tensor
    """int32 or int64 [M, top_k]; an id of no expert that is here (-1, another rank's) adds nothing.
    """
    w13: Tensor
    """uint8 or float4_e2m1fn_x2 [E, 2I, H/2]: gate's rows, then up's; with relu2 [E, I, H/2]."""
    w13_scales: Tensor
    """float8_e4m3fn, each expert's of w13 swizzled."""
    w13_global_scale: Tensor
    """float32 [E], or [E, 2] where gate and up have their own."""
    w2: Tensor
    """uint8 or float4_e2m1fn_x2 [E, H, I/2]."""
    w2_scales: Tensor
    """float8_e4m3fn, each expert's swizzled, of [H, I]."""
    w2_global_scale: Tensor
    """float32 [E], or [E, S] for S equal segments of H."""
    x_global_scale: Tensor | None = None
    """A static scale of x, float32 [] or [1]; None gives each token its own."""
    h_global_scale: Tensor | None = None
    """A static scale of act(gate) * up, float32 [], [1] or [E]; None gives each row its own."""
    w13_bias: Tensor | None = None
    """[E, 2I], with relu2 [E, I], bfloat16, float16 or float32; added in float32."""
    w2_bias: Tensor | None = None
    """[E, H], as w13_bias."""
    expert_offset: int = 0
    """The id of the first expert that is here."""
    global_num_experts: int = 0
    """How many experts the router chooses from, over all ranks; 0: those here. Tiles are chosen for
    this rank's share of the rows; results do not depend on it.
    """
    swiglu_limit: float | None = None
    """A limit L: gate becomes min(gate, L) before the activation, up is clamped to [-L, L]."""
    scale_rule: str = AMAX_OVER_SIX
    """A rule that Quantize takes, for x and for act(gate) * up."""
    activation_format: str = W4A4
    """"nvfp4" (W4A4) quantizes x and act(gate) * up. "bf16" (W4A16) multiplies both in x's dtype,
    float32 rounded to bfloat16, by the same weights.
    """
    activation: str = SILU
    """A name that GluQuantize takes."""
    backend: str = ""

    def outputs(self) -> Tensor:
        check = Checker(self)
        _, hidden = _check_tokens(check, self.x, self.topk_ids)
        check.weight_per_choice(self.topk_weights, self.topk_ids)
        experts, first, k = check.expert_weights("w13", self.w13, self.w13_scales)
        w2_experts, n, intermediate = check.expert_weights("w2", self.w2, self.w2_scales)
        check.glu(self.swiglu_limit, self.activation)
        check.mlp(hidden, first, k, intermediate, self.activation)
        if w2_experts != experts or n != hidden:
            need = f"shape [{experts}, {hidden}, {intermediate // 2}]"
            check.fail("w2", need, f"shape {list(self.w2.shape)}")
        check.per_expert("w13_global_scale", self.w13_global_scale, experts, first)
        check.per_expert("w2_global_scale", self.w2_global_scale, experts, n)
        check.static_scale("x_global_scale", self.x_global_scale)
        check.static_scale("h_global_scale", self.h_global_scale, experts)
        check.bias("w13_bias", self.w13_bias, experts, first)
        check.bias("w2_bias", self.w2_bias, experts, hidden)
        check.activation_format(
            "activation_format",
            self.activation_format,
            self.scale_rule,
            x_global_scale=self.x_global_scale,
            h_global_scale=self.h_global_scale,
        )
        if self.global_num_experts and self.global_num_experts < experts:
            need = f"0, or at least the {experts} experts that are here"
            check.fail("global_num_experts", need, self.global_num_experts)
        return self.x.new_empty(self.x.shape)

    def prepared(self, out: Tensor) -> tuple["Moe", Tensor]:
        """Prepare the call for its stage weight_only_moe."""
        call = self._replace(
            x=matrix(self.x),
            topk_weights=self.topk_weights.contiguous(),
            topk_ids=self.topk_ids.contiguous(),
            w13=as_bytes(self.w13).contiguous(),
            w13_scales=self.w13_scales.contiguous(),
            w13_global_scale=_segments(self.w13_global_scale),
            w2=as_bytes(self.w2).contiguous(),
            w2_scales=self.w2_scales.contiguous(),
            w2_global_scale=_segments(self.w2_global_scale),
            w13_bias=contiguous(self.w13_bias),
            w2_bias=contiguous(self.w2_bias),
        )
        return call, out

    def expected_rows(self) -> int:
        """How many rows of this rank's experts are expected: its share of the choices."""
        choices, experts = self.topk_ids.numel(), self.w13.shape[0]
        return -(-choices * experts // (self.global_num_experts or experts))


def _segments(p: Tensor) -> Tensor:
    """The scales of experts [E] or [E, S], as contiguous [E, S]."""
    return p.reshape(p.shape[0], -1).contiguous()


def _check_tokens(check: Checker, x: Tensor, topk_ids: Tensor) -> tuple[int, int]:
    """Check x [M, H] and topk_ids [M, top_k]; returns (M, H)."""
    m, k = check.floats("x", x)
    if x.dim() != 2:
        check.fail("x", "2 dimensions", f"shape {list(x.shape)}")
    check.tensor("topk_ids", topk_ids, ID_DTYPES)
    if topk_ids.dim() != 2 or topk_ids.shape[0] != m or topk_ids.shape[1] == 0:
        check.fail("topk_ids", f"shape [{m}, top_k]", f"shape {list(topk_ids.shape)}")
    return m, k
