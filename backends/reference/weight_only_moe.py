"""A mixture of experts with activations in 16 bits, in float64 expert by expert."""

import torch
from torch import Tensor

from nvfp4.backends.reference.mm import multiply
from nvfp4.backends.reference.moe_combine import moe_combine
from nvfp4.calls import Moe, MoeCombine, takes
from nvfp4.spec.glu import activate
from nvfp4.spec.grouped import route
from nvfp4.spec.swizzle import unswizzle_scales


@takes(Moe.prepared)
def weight_only_moe(call: Moe, out: Tensor) -> None:
    """Route the tokens, multiply expert by expert and combine; the host waits for the offsets."""
    x, experts = call.x, call.w13.shape[0]
    offsets, positions = route(call.topk_ids, experts, call.expert_offset)
    edges, rows = offsets.tolist(), positions.numel()
    choice = torch.argsort(positions.flatten())  # unassigned ones, -1, come first
    token = choice[rows - edges[-1] :] // call.topk_ids.shape[1]

    weight = call.w13, call.w13_scales, call.w13_global_scale
    gate_up = x.new_empty((rows, call.w13.shape[1]))
    _multiply_experts(_rounded(x)[token], weight, call.w13_bias, edges, gate_up)

    h = activate(gate_up[: edges[-1]].float(), call.swiglu_limit, call.activation)
    weight = call.w2, call.w2_scales, call.w2_global_scale
    y = x.new_empty((rows, x.shape[1]))
    _multiply_experts(_rounded(h.to(x.dtype)), weight, call.w2_bias, edges, y)
    moe_combine(MoeCombine(y, call.topk_weights, positions, x.dtype), out)


def _rounded(x: Tensor) -> Tensor:
    """x as it is multiplied: in 16 bits."""
    return x.bfloat16() if x.dtype == torch.float32 else x


def _multiply_experts(
    a: Tensor,
    weight: tuple[Tensor, Tensor, Tensor],
    bias: Tensor | None,
    edges: list[int],
    out: Tensor,
) -> None:
    """Multiply rows edges[e] up to edges[e + 1] of A by the weight [N, K] of expert e."""
    data, scales, p = weight
    for e, (begin, end) in enumerate(zip(edges, edges[1:], strict=False)):
        if begin < end:
            rows, (n, half_k) = slice(begin, end), data.shape[1:]
            linear = unswizzle_scales(scales[e], n, 2 * half_k)
            own = None if bias is None else bias[e]
            multiply(a[rows], data[e], linear, p[e : e + 1], own, out[rows])
