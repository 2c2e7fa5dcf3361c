"""nvfp4::moe_dispatch: tokens to the experts' rows, quantized on the way.

Sizes are fixed by the shapes alone and nothing waits for the device: R = M * top_k rows, and scale
tiles for any offsets. An id outside [expert_offset, expert_offset + E), -1 for one, is nobody's: it
takes no row. Within an expert rows are in the order of tokens.
"""

import torch
from torch import Tensor

from nvfp4.dispatch import launcher
from nvfp4.ops.checks import ID_DTYPES, Checker, matrix, valid_values, vector
from nvfp4.ops.experts import ExpertRows
from nvfp4.ops.glu_quantize import Quantized, zero_grouped
from nvfp4.ops.library import define

SIGNATURE = """(Tensor x, Tensor topk_ids, int num_experts, Tensor? x_global_scale=None,
    int expert_offset=0, str backend="")
    -> (Tensor data, Tensor scales, Tensor row_scale, Tensor offsets, Tensor positions)"""

Dispatched = tuple[Tensor, Tensor, Tensor, Tensor, Tensor]
"""data, grouped scales, one global scale per row, offsets, positions."""


def check_tokens(check: Checker, x: Tensor, topk_ids: Tensor) -> tuple[int, int]:
    """x [M, H] and topk_ids [M, top_k]; returns (M, H)."""
    m, k = check.floats("x", x)
    if x.dim() != 2:
        check.fail("x", "2 dimensions", f"shape {list(x.shape)}")
    check.tensor("topk_ids", topk_ids, ID_DTYPES)
    if topk_ids.dim() != 2 or topk_ids.shape[0] != m or topk_ids.shape[1] == 0:
        check.fail("topk_ids", f"shape [{m}, top_k]", f"shape {list(topk_ids.shape)}")
    return m, k


def with_routing(quantized: Quantized, topk_ids: Tensor, experts: int) -> Dispatched:
    """Rows' unwritten outputs, and those of where the tokens go."""
    offsets = topk_ids.new_empty((experts + 1,), dtype=torch.int32)
    return *quantized, offsets, topk_ids.new_empty(topk_ids.shape, dtype=torch.int32)


def _outputs(
    x: Tensor,
    topk_ids: Tensor,
    num_experts: int,
    x_global_scale: Tensor | None = None,
    expert_offset: int = 0,
    backend: str = "",
) -> Dispatched:
    check = Checker("moe_dispatch", x)
    m, k = check_tokens(check, x, topk_ids)
    check.experts("num_experts", num_experts)
    check.static_scale("x_global_scale", x_global_scale)
    quantized = zero_grouped(x, m * topk_ids.shape[1], num_experts, k)
    return with_routing(quantized, topk_ids, num_experts)


def _run(
    x: Tensor,
    topk_ids: Tensor,
    num_experts: int,
    x_global_scale: Tensor | None = None,
    expert_offset: int = 0,
    backend: str = "",
) -> Dispatched:
    outputs = _outputs(x, topk_ids, num_experts, x_global_scale, expert_offset)
    if x_global_scale is not None:
        valid_values("moe_dispatch", "x_global_scale", x_global_scale)
    launch = launcher("moe_dispatch", x.device, backend)
    if x.numel():
        launch(matrix(x), topk_ids.contiguous(), vector(x_global_scale), expert_offset, *outputs)
    else:
        outputs[3].zero_()  # offsets: no expert has a row
    return outputs


define("moe_dispatch", SIGNATURE, _outputs, _run)


def moe_dispatch(
    x: Tensor,
    topk_ids: Tensor,
    num_experts: int,
    x_global_scale: Tensor | None = None,
    expert_offset: int = 0,
    backend: str = "",
) -> tuple[ExpertRows, Tensor]:
    """Gather and quantize tokens x [M, H] into the rows of their experts, in one pass.

    Args:
        topk_ids: int32 or int64 [M, top_k]; those outside [expert_offset, expert_offset +
            num_experts) take no row.
        x_global_scale: float32 [] or [1], calibrated; None: each token its own, amax / 2688.

    Returns the rows [R, H], R = M * top_k, those from offsets[E] on nobody's and zero; and
    positions int32 [M, top_k], the row of each choice, -1 for none.
    """
    data, scales, p, offsets, positions = torch.ops.nvfp4.moe_dispatch(
        x, topk_ids, num_experts, x_global_scale, expert_offset, backend
    )
    return ExpertRows(data, scales, p, offsets), positions
