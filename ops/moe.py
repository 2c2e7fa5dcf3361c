"""A mixture of experts, from tokens and routing to tokens (nvfp4::moe).

    moe_dispatch -> grouped_mm (w13) -> glu_quantize -> grouped_mm (w2) -> moe_combine

In W4A4 every stage is an op of its own, for who wants to step in between (a LoRA adds to what the
grouped GEMMs give); called one by one they give the same bits. With activations in 16 bits (W4A16)
a backend does all of it, as its stage weight_only_moe. No token's output depends on its neighbours.
"""

import torch
from torch import Tensor

from nvfp4.calls import GroupedMm, GroupedMmGluQuantize, Moe, MoeCombine, MoeDispatch
from nvfp4.dispatch import fill
from nvfp4.ops.grouped_mm_glu_quantize import run as run_first_layer
from nvfp4.ops.library import define
from nvfp4.spec.format import W4A4, W4A16
from nvfp4.spec.glu import SILU
from nvfp4.spec.scale_rules import AMAX_OVER_SIX
from nvfp4.tensors import ExpertWeights


def moe(
    x: Tensor,
    topk_weights: Tensor,
    topk_ids: Tensor,
    w13: ExpertWeights,
    w2: ExpertWeights,
    x_global_scale: Tensor | None = None,
    h_global_scale: Tensor | None = None,
    w13_bias: Tensor | None = None,
    w2_bias: Tensor | None = None,
    expert_offset: int = 0,
    global_num_experts: int = 0,
    swiglu_limit: float | None = None,
    scale_rule: str = AMAX_OVER_SIX,
    activation_format: str = W4A4,
    activation: str = SILU,
    backend: str = "",
) -> Tensor:
    """Run a mixture of experts on tokens x [M, H]: [M, H] in x's dtype.

    out[t] = sum over j of topk_weights[t, j] * down(act(gate(x[t])) * up(x[t])) of expert
    topk_ids[t, j] - expert_offset; ids that are not of a local expert (-1, or another rank's)
    contribute nothing.

    Args:
        x: bfloat16, float16 or float32; H a multiple of 16. What the first GEMM gives is rounded to
            this dtype too.
        topk_weights: [M, top_k], any float dtype; topk_ids: int32 or int64 [M, top_k].
        w13: [E, 2I, H], gate's rows first, then up's, with relu2 [E, I, H]; w2: [E, H, I].
            global_scale [E], or [E, 2] where gate and up have their own.
        x_global_scale: float32 [] or [1], calibrated; None: each token its own.
        h_global_scale: of act(gate) * up; [], [1] or [E]; None: each row its own.
        w13_bias, w2_bias: [E, 2I] (or [E, I]) and [E, H], added in float32.
        swiglu_limit, activation: as nvfp4.glu_quantize.
        scale_rule: of the block scales of x and of act(gate) * up, as nvfp4.quantize.
        activation_format: "nvfp4" (W4A4), or "bf16" (W4A16): nothing is quantized on the way. x and
            act(gate) * up are multiplied as they are, in x's dtype (float32 rounded to bfloat16).
        global_num_experts: how many the router chooses from, over all ranks; 0: those here. Tiles
            are chosen for this rank's share of the rows; results do not depend on it.
    """
    weights = w13.data, w13.scales, w13.global_scale, w2.data, w2.scales, w2.global_scale
    return torch.ops.nvfp4.moe(
        x, topk_weights, topk_ids, *weights, x_global_scale, h_global_scale, w13_bias, w2_bias,
        expert_offset, global_num_experts, swiglu_limit, scale_rule, activation_format, activation,
        backend,
    )  # fmt: skip


def _run(call: Moe, out: Tensor) -> None:
    if call.activation_format == W4A16:
        fill(call, out, stage=True, op="weight_only_moe")
        return
    x, backend, expected_rows = call.x, call.backend, call.expected_rows()
    dispatch = MoeDispatch(
        x,
        call.topk_ids,
        call.w13.shape[0],
        call.x_global_scale,
        call.expert_offset,
        call.scale_rule,
        backend,
    )
    rows = dispatch.empty()
    fill(dispatch, rows, stage=True)

    first = GroupedMmGluQuantize(
        *(rows.data, call.w13, rows.scales, call.w13_scales, call.w13_global_scale, rows.offsets),
        row_scale=rows.row_scale,
        bias=call.w13_bias,
        global_scale=call.h_global_scale,
        swiglu_limit=call.swiglu_limit,
        gate_up_dtype=x.dtype,
        expected_rows=expected_rows,
        scale_rule=call.scale_rule,
        activation=call.activation,
        backend=backend,
    )
    h = first.empty()
    run_first_layer(first, h)

    second = GroupedMm(
        *(h.data, call.w2, h.scales, call.w2_scales, call.w2_global_scale, rows.offsets),
        row_scale=h.row_scale,
        bias=call.w2_bias,
        out_dtype=x.dtype,
        expected_rows=expected_rows,
        backend=backend,
    )
    y = x.new_empty((len(h.data), x.shape[1]))
    fill(second, y, stage=True)
    combine = MoeCombine(y, call.topk_weights, rows.positions, x.dtype, backend)
    fill(combine, out, stage=True)


define(Moe, _run)
