"""A peer, if it is installed: humming-kernels' weight-only GEMM, bf16 activations times NVFP4."""

from collections.abc import Sequence
from functools import partial
from importlib.util import find_spec

import torch
from torch import Tensor

import nvfp4
from nvfp4.bench.timing import Call


def available(device: str) -> bool:
    return device == "cuda" and find_spec("humming") is not None


def linear(x: Tensor, weights: Sequence[nvfp4.QuantizedTensor]) -> list[Call]:
    """x [M, K] bf16 times each of the weights; checked, the first of them, against ours."""
    from humming.layer import HummingLayer

    layers = []
    for w in weights:
        layer = HummingLayer(
            shape_n=w.shape[0],
            shape_k=w.shape[1],
            weight_config={"quant_method": "modelopt", "quant_algo": "nvfp4"},
            torch_dtype=torch.bfloat16,
        )
        tensors = {
            "weight": w.data,
            "weight_scale": w.linear_scales(),
            "weight_scale_2": w.global_scale.reshape(1),
        }
        layer.load_from_tensors(tensors)
        layer.cuda()
        layer.transform()
        layers.append(layer)
    w = weights[0]
    args = (x, w.data, w.scales, w.global_scale)
    want = torch.ops.nvfp4.linear(*args, activation="bf16").double()
    error = float((layers[0](x).double() - want).norm() / want.norm())
    if not error < 2**-7:  # both round to bf16; how it sums is its own
        raise AssertionError(f"humming {list(x.shape)} x {list(w.shape)}: error {error:.1e}")
    return [partial(layer, x) for layer in layers]
