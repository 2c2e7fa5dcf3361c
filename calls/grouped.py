"""Outputs whose rows belong to experts: each expert's scale tiles begin anew (spec/grouped.py)."""

import torch
from torch import Tensor

from nvfp4.calls.outputs import Quantized
from nvfp4.spec.format import DATA_DTYPE, SCALE_DTYPE
from nvfp4.spec.grouped import grouped_scales_shape


def empty_grouped(like: Tensor, rows: int, experts: int, k: int) -> Quantized:
    """Unwritten outputs for expert-major rows [rows, k].

    Launchers write the experts' rows, and each scale tile that these take as a whole.
    """
    data = like.new_empty((rows, k // 2), dtype=DATA_DTYPE)
    scales = like.new_empty(grouped_scales_shape(rows, experts, k), dtype=SCALE_DTYPE)
    return Quantized(data, scales, like.new_empty((rows,), dtype=torch.float32))


def zero_grouped(like: Tensor, rows: int, experts: int, k: int) -> Quantized:
    """Outputs for expert-major rows [rows, k] in which unassigned rows are zero."""
    out = empty_grouped(like, rows, experts, k)
    out.scales.view(DATA_DTYPE).zero_()
    return out._replace(data=out.data.zero_(), row_scale=out.row_scale.zero_())
