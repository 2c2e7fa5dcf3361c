import torch
from torch import Tensor

from nvfp4.spec import quantize as spec
from nvfp4.spec.grouped import route, swizzle_grouped_scales


def moe_dispatch(
    x: Tensor,
    topk_ids: Tensor,
    p: Tensor | None,
    expert_offset: int,
    data: Tensor,
    scales: Tensor,
    row_scale: Tensor,
    offsets: Tensor,
    positions: Tensor,
) -> None:
    """Each token quantized once, then copied to its experts' rows; nobody's rows left alone."""
    found_offsets, found_positions = route(topk_ids, offsets.numel() - 1, expert_offset)
    offsets.copy_(found_offsets)
    positions.copy_(found_positions)
    p = spec.row_global_scales(x) if p is None else p.expand(len(x))
    tokens = torch.empty(x.shape[0], x.shape[1] // 2, dtype=data.dtype, device=x.device)
    linear = spec.quantize(x, p, tokens).view(torch.uint8)

    flat = positions.flatten()
    choice = torch.nonzero(flat >= 0).squeeze(1)  # the host waits for their number
    row, token = flat[choice].long(), choice // topk_ids.shape[1]
    data[row], row_scale[row] = tokens[token], p[token]
    by_row = linear.new_zeros(len(data), linear.shape[1])
    by_row[row] = linear[token]
    scales.copy_(swizzle_grouped_scales(by_row.view(scales.dtype), offsets))
