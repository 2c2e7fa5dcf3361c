import torch
from torch import Tensor


def moe_combine(y: Tensor, topk_weights: Tensor, positions: Tensor, out: Tensor) -> None:
    """out[t] = sum over choices j of weight[t, j] * y[positions[t, j]]: float32, in the order of j,
    each product and each sum rounded. A choice whose position is not a row of y adds nothing.
    """
    acc = torch.zeros(out.shape, dtype=torch.float32, device=out.device)
    computed = (positions >= 0) & (positions < y.shape[0])
    for j in range(positions.shape[1]):
        (token,) = torch.nonzero(computed[:, j], as_tuple=True)
        row = positions[token, j].long()
        acc[token] += topk_weights[token, j, None].float() * y[row].float()
    out.copy_(acc)
