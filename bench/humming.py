"""The peer humming-kernels, if it is installed: W4A16 GEMMs, bf16 activations times NVFP4."""

from collections.abc import Callable, Sequence
from functools import partial
from importlib.util import find_spec
from typing import Any

import torch
from torch import Tensor

import nvfp4
from nvfp4.tuning.timing import Call


def available(device: str) -> bool:
    return device == "cuda" and find_spec("humming") is not None


def linear(x: Tensor, weights: Sequence[nvfp4.QuantizedTensor]) -> list[Call]:
    """Make the calls of x [M, K] bf16 times each weight; the first is checked against ours."""
    layers = [_layer(w.data, w.linear_scales(), w.global_scale) for w in weights]
    w = weights[0]
    args = (x, w.data, w.scales, w.global_scale)
    want = torch.ops.nvfp4.linear(*args, activation="bf16")
    _check(f"{list(x.shape)} x {list(w.shape)}", layers[0](x), want)
    return [partial(layer, x) for layer in layers]


def grouped(weights: Tensor, share: float) -> Callable[[Tensor, Tensor], Tensor]:
    """Quantize bf16 weights [E, N, K] and make a function that multiplies rows sorted by expert.

    It takes the rows and each expert's end, int32 [E]. About `share` of the rows are assigned to
    an expert. It is checked against ours.
    """
    experts = [nvfp4.quantize_weight(w) for w in weights]
    layer = _layer(
        torch.stack([w.data for w in experts]),
        torch.stack([w.linear_scales().view(torch.uint8) for w in experts]).view(
            experts[0].scales.dtype
        ),
        torch.stack([w.global_scale.reshape(()) for w in experts]),
    )

    def multiply(x: Tensor, ends: Tensor) -> Tensor:
        offsets = torch.nn.functional.pad(ends, (1, 0)).long()
        config = {"gemm_type": "grouped_contiguous"}
        rows = max(1, round(len(x) * share))  # humming chooses its tiles by this number
        return layer(x, expert_layout=offsets, compute_config=config, valid_shape_m=rows)

    x = torch.randn(2 * len(experts), weights.shape[2], device=weights.device, dtype=weights.dtype)
    got = multiply(x, 2 * torch.arange(1, len(experts) + 1, device=x.device).int())
    for index in (0, len(experts) - 1):
        w, part = experts[index], slice(2 * index, 2 * index + 2)
        want = torch.ops.nvfp4.linear(x[part], w.data, w.scales, w.global_scale, activation="bf16")
        _check(f"grouped {list(weights.shape)}", got[part], want)
    return multiply


def _layer(data: Tensor, scales: Tensor, global_scale: Tensor) -> Any:
    """Make humming's layer of data [N, K/2], linear scales and a global scale, or of E such."""
    from humming.layer import HummingLayer

    layer = HummingLayer(
        shape_n=data.shape[-2],
        shape_k=data.shape[-1] * 2,
        num_experts=len(data) if data.dim() == 3 else None,
        weight_config={"quant_method": "modelopt", "quant_algo": "nvfp4"},
        torch_dtype=torch.bfloat16,
    )
    if data.dim() == 2:
        global_scale = global_scale.reshape(1)
    tensors = {"weight": data, "weight_scale": scales, "weight_scale_2": global_scale}
    layer.load_from_tensors(tensors)
    layer.cuda()
    layer.transform()
    return layer


def _check(what: str, got: Tensor, want: Tensor) -> None:
    error = float((got.double() - want.double()).norm() / want.double().norm())
    if not error < 2**-7:  # both round to bf16, and sum in different orders
        raise AssertionError(f"humming {what}: error {error:.1e}")
