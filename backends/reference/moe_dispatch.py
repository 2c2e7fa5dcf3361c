import torch

from nvfp4.calls import Dispatched, MoeDispatch, takes
from nvfp4.spec import quantize as spec
from nvfp4.spec.grouped import route, swizzle_grouped_scales


@takes(MoeDispatch.prepared)
def moe_dispatch(call: MoeDispatch, out: Dispatched) -> None:
    """Quantize each token once, then copy it to its experts' rows."""
    x, top_k = call.x, call.topk_ids.shape[1]
    offsets, positions = route(call.topk_ids, call.num_experts, call.expert_offset)
    out.offsets.copy_(offsets)
    out.positions.copy_(positions)
    static = call.x_global_scale
    p = spec.row_global_scales(x, call.scale_rule) if static is None else static.expand(len(x))
    tokens = torch.empty(x.shape[0], x.shape[1] // 2, dtype=out.data.dtype, device=x.device)
    linear = spec.quantize(x, p, tokens, call.scale_rule).view(torch.uint8)

    flat = out.positions.flatten()
    choice = torch.nonzero(flat >= 0).squeeze(1)  # the host waits for their number
    row, token = flat[choice].long(), choice // top_k
    out.data[row], out.row_scale[row] = tokens[token], p[token]
    by_row = linear.new_zeros(len(out.data), linear.shape[1])
    by_row[row] = linear[token]
    out.scales.copy_(swizzle_grouped_scales(by_row.view(out.scales.dtype), out.offsets))
