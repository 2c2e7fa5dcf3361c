import torch
from torch import Tensor


def moe_combine(y: Tensor, topk_weights: Tensor, positions: Tensor, out: Tensor) -> None:
    """out[t] = sum over choices j of weight[t, j] * y[positions[t, j]]: float32, in the order of j,
    each product and each sum rounded; choices that nobody computed (-1) are passed over.
    """
    acc = torch.zeros(out.shape, dtype=torch.float32, device=out.device)
    for j in range(positions.shape[1]):
        (token,) = torch.nonzero(positions[:, j] >= 0, as_tuple=True)
        row = positions[token, j].long()
        acc[token] += topk_weights[token, j, None].float() * y[row].float()
    out.copy_(acc)
