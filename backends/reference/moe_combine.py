import torch
from torch import Tensor

from nvfp4.calls import MoeCombine, takes


@takes(MoeCombine.prepared)
def moe_combine(call: MoeCombine, out: Tensor) -> None:
    y, positions = call.y, call.positions
    acc = torch.zeros(out.shape, dtype=torch.float32, device=out.device)
    computed = (positions >= 0) & (positions < y.shape[0])
    for j in range(positions.shape[1]):
        (token,) = torch.nonzero(computed[:, j], as_tuple=True)
        row = positions[token, j].long()
        acc[token] += call.topk_weights[token, j, None].float() * y[row].float()
    out.copy_(acc)
