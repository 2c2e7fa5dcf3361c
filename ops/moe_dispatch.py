"""Tokens to the experts' rows, quantized on the way (nvfp4::moe_dispatch)."""

import torch
from torch import Tensor

from nvfp4.calls import Dispatched, MoeDispatch
from nvfp4.dispatch import fill
from nvfp4.ops.library import define
from nvfp4.spec.scale_rules import AMAX_OVER_SIX
from nvfp4.tensors import ExpertRows


def moe_dispatch(
    x: Tensor,
    topk_ids: Tensor,
    num_experts: int,
    x_global_scale: Tensor | None = None,
    expert_offset: int = 0,
    scale_rule: str = AMAX_OVER_SIX,
    backend: str = "",
) -> tuple[ExpertRows, Tensor]:
    """Gather and quantize tokens x [M, H] into the rows of their experts, in one pass.

    Args:
        topk_ids: int32 or int64 [M, top_k]; those outside [expert_offset, expert_offset +
            num_experts) take no row.
        x_global_scale: float32 [] or [1], calibrated; None: each token its own, as
            nvfp4.quantize_dynamic.
        scale_rule: as nvfp4.quantize.

    Returns the rows [R, H], R = M * top_k, and positions int32 [M, top_k]: the row of each
    choice, -1 for none. Rows from offsets[E] on are unassigned: padding, and zero.
    """
    data, scales, p, offsets, positions = torch.ops.nvfp4.moe_dispatch(
        x, topk_ids, num_experts, x_global_scale, expert_offset, scale_rule, backend
    )
    return ExpertRows(data, scales, p, offsets), positions


def _run(call: MoeDispatch, out: Dispatched) -> None:
    fill(call, out)
    if not call.x.numel():
        out.offsets.zero_()  # no expert has a row


define(MoeDispatch, _run)
