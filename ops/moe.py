"""nvfp4::moe: a mixture of experts, from tokens and routing to tokens.

    moe_dispatch -> grouped_mm (w13) -> glu_quantize -> grouped_mm (w2) -> moe_combine

Every stage is an op of its own, for who wants to step in between (a LoRA adds to what the grouped
GEMMs give); called one by one they give the same bits. No stage waits for the device, and no
token's output depends on its neighbours.
"""

import torch
from torch import Tensor

from nvfp4.dispatch import launcher
from nvfp4.ops.checks import Checker, matrix, valid_values, vector
from nvfp4.ops.experts import ExpertWeights
from nvfp4.ops.glu_quantize import empty_grouped
from nvfp4.ops.grouped_mm import prepared
from nvfp4.ops.grouped_mm_glu_quantize import first_layer
from nvfp4.ops.library import define
from nvfp4.ops.moe_combine import check_weights
from nvfp4.ops.moe_dispatch import check_tokens, with_routing
from nvfp4.spec.glu import SILU

SIGNATURE = """(Tensor x, Tensor topk_weights, Tensor topk_ids,
    Tensor w13, Tensor w13_scales, Tensor w13_global_scale,
    Tensor w2, Tensor w2_scales, Tensor w2_global_scale,
    Tensor? x_global_scale=None, Tensor? h_global_scale=None, int expert_offset=0,
    float? swiglu_limit=None, str backend="", *, str activation="silu",
    int global_num_experts=0) -> Tensor"""

STAGES = ("moe_dispatch", "grouped_mm", "glu_quantize", "moe_combine")


def _outputs(
    x: Tensor,
    topk_weights: Tensor,
    topk_ids: Tensor,
    w13: Tensor,
    w13_scales: Tensor,
    w13_global_scale: Tensor,
    w2: Tensor,
    w2_scales: Tensor,
    w2_global_scale: Tensor,
    x_global_scale: Tensor | None = None,
    h_global_scale: Tensor | None = None,
    expert_offset: int = 0,
    swiglu_limit: float | None = None,
    backend: str = "",
    *,
    activation: str = SILU,
    global_num_experts: int = 0,
) -> Tensor:
    check = Checker("moe", x)
    _, hidden = check_tokens(check, x, topk_ids)
    check_weights(check, topk_weights, topk_ids)
    experts, both, k = check.expert_weights("w13", w13, w13_scales)
    w2_experts, n, intermediate = check.expert_weights("w2", w2, w2_scales)
    if k != hidden:
        check.fail("w13", f"x's K = {hidden}, that is {hidden // 2} bytes a row", f"K = {k}")
    if both != 2 * intermediate:
        check.fail("w13", f"N = 2I = {2 * intermediate} (w2 has K = I = {intermediate})", both)
    if w2_experts != experts or n != hidden:
        got = f"shape {list(w2.shape)}"
        check.fail("w2", f"shape [{experts}, {hidden}, {intermediate // 2}]", got)
    check.per_expert("w13_global_scale", w13_global_scale, experts, both)
    check.per_expert("w2_global_scale", w2_global_scale, experts, n)
    check.static_scale("x_global_scale", x_global_scale)
    check.static_scale("h_global_scale", h_global_scale, experts)
    check.glu(swiglu_limit, activation)
    if global_num_experts and global_num_experts < experts:
        need = f"0, or at least the {experts} experts that are here"
        check.fail("global_num_experts", need, global_num_experts)
    return x.new_empty(x.shape)


def _run(
    x: Tensor,
    topk_weights: Tensor,
    topk_ids: Tensor,
    w13: Tensor,
    w13_scales: Tensor,
    w13_global_scale: Tensor,
    w2: Tensor,
    w2_scales: Tensor,
    w2_global_scale: Tensor,
    x_global_scale: Tensor | None = None,
    h_global_scale: Tensor | None = None,
    expert_offset: int = 0,
    swiglu_limit: float | None = None,
    backend: str = "",
    *,
    activation: str = SILU,
    global_num_experts: int = 0,
) -> Tensor:
    out = _outputs(
        x, topk_weights, topk_ids, w13, w13_scales, w13_global_scale, w2, w2_scales,
        w2_global_scale, x_global_scale, h_global_scale, expert_offset, swiglu_limit,
        activation=activation, global_num_experts=global_num_experts,
    )  # fmt: skip
    for name, p in (
        ("w13_global_scale", w13_global_scale),
        ("w2_global_scale", w2_global_scale),
        ("x_global_scale", x_global_scale),
        ("h_global_scale", h_global_scale),
    ):
        if p is not None:
            valid_values("moe", name, p)
    combine = launcher("moe_combine", x.device, backend, stage=True)
    if not out.numel():
        return out
    experts, rows = w13.shape[0], topk_ids.numel()
    likely_rows = -(-rows * experts // (global_num_experts or experts))
    x_p, h_p = vector(x_global_scale), vector(h_global_scale)

    quantized = empty_grouped(x, rows, experts, x.shape[1])
    data, scales, p, offsets, positions = with_routing(quantized, topk_ids, experts)
    launcher("moe_dispatch", x.device, backend, stage=True)(
        matrix(x), topk_ids.contiguous(), x_p, expert_offset, data, scales, p, offsets, positions
    )
    h = empty_grouped(x, rows, experts, 2 * w2.shape[2])
    first = prepared(data, w13, scales, w13_scales, w13_global_scale, p)
    first_layer(first, offsets, h_p, swiglu_limit, activation, x.dtype, backend, h, likely_rows)

    y = x.new_empty((rows, x.shape[1]))
    second = prepared(h[0], w2, h[1], w2_scales, w2_global_scale, h[2])
    launcher("grouped_mm", x.device, backend, stage=True)(*second, None, offsets, y, likely_rows)
    combine(y, topk_weights.contiguous(), positions, out)
    return out


define("moe", SIGNATURE, _outputs, _run)


def moe(
    x: Tensor,
    topk_weights: Tensor,
    topk_ids: Tensor,
    w13: ExpertWeights,
    w2: ExpertWeights,
    x_global_scale: Tensor | None = None,
    h_global_scale: Tensor | None = None,
    expert_offset: int = 0,
    swiglu_limit: float | None = None,
    activation: str = SILU,
    backend: str = "",
    global_num_experts: int = 0,
) -> Tensor:
    """A mixture of experts on tokens x [M, H]: [M, H] in x's dtype.

    out[t] = sum over j of topk_weights[t, j] * down(act(gate(x[t])) * up(x[t])) of expert
    topk_ids[t, j] - expert_offset; ids that are not of a local expert (-1, or another rank's)
    contribute nothing.

    Args:
        x: bfloat16, float16 or float32; H a multiple of 16. What the first GEMM gives is rounded to
            this dtype too.
        topk_weights: [M, top_k], any float dtype; topk_ids: int32 or int64 [M, top_k].
        w13: [E, 2I, H], gate's rows first, then up's; w2: [E, H, I]. global_scale [E], or [E, 2]
            where gate and up have their own.
        x_global_scale: float32 [] or [1], calibrated; None: each token its own.
        h_global_scale: of act(gate) * up; [], [1] or [E]; None: each row its own.
        swiglu_limit: gate = min(gate, L) before the activation, up = clamp(up, -L, L).
        activation: "silu" or "gelu_tanh".
        global_num_experts: how many the router chooses from, over all ranks; 0: those here. Tiles
            are chosen for this rank's share of the rows; results do not depend on it.
    """
    return torch.ops.nvfp4.moe(
        x, topk_weights, topk_ids, w13.data, w13.scales, w13.global_scale, w2.data, w2.scales,
        w2.global_scale, x_global_scale, h_global_scale, expert_offset, swiglu_limit, backend,
        activation=activation, global_num_experts=global_num_experts,
    )  # fmt: skip
