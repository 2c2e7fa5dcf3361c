"""Quantizing of a model in memory: its linear layers, and its blocks of experts."""

from collections import Counter
from collections.abc import Iterator, Sequence
from typing import Any, TypeVar

import torch
from torch import nn

from nvfp4.checkpoints.experts import (
    DOWN_STACK,
    activation_of,
    has_gate,
    in_rows,
    is_activation_known,
    is_experts,
    is_sorted_by_caller,
    stacks_of,
)
from nvfp4.checkpoints.load import Experts, SortedExperts
from nvfp4.checkpoints.names import WEIGHT, is_router, matches
from nvfp4.checkpoints.skeleton import is_kept_in_float32, is_plain_linear
from nvfp4.layers import Linear, MoE
from nvfp4.spec.format import BLOCK, FLOAT_DTYPES, W4A4, W4A16
from nvfp4.spec.scale_rules import AMAX_OVER_SIX

Model = TypeVar("Model", bound=nn.Module)


def quantize_model(
    model: Model,
    exclude: Sequence[str] = (),
    scale_rule: str = AMAX_OVER_SIX,
    activation: str = W4A4,
    backend: str = "",
) -> Model:
    """Replace a model's linear layers by nvfp4.layers.Linear, and its experts by layers.MoE.

    The model is changed in place and returned; each weight in floats is freed after its turn.
    Experts are known as transformers holds them, a block's in one module. These stay in floats:

        routers, a language model's head, and weights that are shared with another layer
        what a vision-language model sees with, and what the model's class keeps in float32
        layers whose K is not a multiple of 16, and experts of another activation

    Args:
        model: any torch module that holds nn.Linear layers, on any device.
        exclude: layers to leave in floats, as wildcards of their names ("*.o_proj") or as parts of
            names between dots ("self_attn").
        scale_rule: of the activations' block scales, as nvfp4.quantize takes it.
        activation: "nvfp4" (W4A4) with one scale per token, or "bf16" (W4A16).
        backend: a backend's name, or "" to choose at each call.

    Raises:
        ValueError: a pattern matches no layer, or there is nothing to quantize.
    """
    if activation not in (W4A4, W4A16):
        need = f"{W4A4!r} or {W4A16!r}"
        raise ValueError(f"nvfp4.quantize_model: activation needs {need}, got {activation!r}")
    layers = {n: m for n, m in model.named_modules() if is_plain_linear(m) or is_experts(m)}
    for pattern in exclude:
        if not any(matches(pattern, name) for name in layers):
            need = "patterns of linear layers' or experts' names"
            raise ValueError(f"nvfp4.quantize_model: exclude needs {need}, got {pattern!r}")
    left = set(_left_in_floats(model, layers))
    left |= {name for name in layers if any(matches(pattern, name) for pattern in exclude)}
    quantized = [name for name in layers if name not in left]
    if not quantized or "" in quantized:
        need, got = "a module with linear layers to quantize", type(model).__name__
        raise ValueError(f"nvfp4.quantize_model: model needs to be {need}, got {got}")
    for name in quantized:
        layer = layers.pop(name)
        made: nn.Module
        if isinstance(layer, nn.Linear):
            made = Linear.from_float(layer, None, scale_rule, activation, backend)
        else:
            made = _experts(layer, scale_rule, activation, backend)
        made.train(layer.training)
        model.set_submodule(name, made)
    return model


def _experts(layer: Any, rule: str, form: str, backend: str) -> Experts | SortedExperts:
    """Quantize a module of experts that transformers has made."""
    limit, activation = activation_of(layer)
    w13, w2, w13_bias, w2_bias = stacks_of(layer)
    gate, up = w13.chunk(2, dim=1) if has_gate(layer) else (None, w13)
    moe = MoE.from_float(
        gate,
        up,
        w2,
        w13_bias=w13_bias,
        w2_bias=w2_bias,
        swiglu_limit=limit,
        scale_rule=rule,
        activation_format=form,
        activation=activation,
        backend=backend,
    )
    return SortedExperts(moe) if is_sorted_by_caller(layer) else Experts(moe)


def _left_in_floats(model: Any, layers: dict[str, nn.Module]) -> Iterator[str]:
    """Yield the names of the layers that are not quantized even if nobody excludes them."""
    uses: Counter[int] = Counter()
    for module in model.modules():
        uses.update(id(parameter) for parameter in module.parameters(recurse=False))
    head = model.get_output_embeddings() if hasattr(model, "get_output_embeddings") else None
    of_transformers = hasattr(model, "_get_dtype_plan")
    reads = None  # the part of a vision-language model that reads text
    if of_transformers and hasattr(model.config, "text_config"):
        reads = set(model.get_decoder().modules())
    for name, layer in layers.items():
        weights = list(layer.parameters(recurse=False))
        if (
            is_router(name)
            or layer is head
            or (reads is not None and layer not in reads)
            or any(uses[id(weight)] > 1 for weight in weights)
            or any(weight.dtype not in FLOAT_DTYPES or weight.is_meta for weight in weights)
            or not _fits(layer)
            # With float16 it keeps all that it keeps with bfloat16, and more.
            or (of_transformers and is_kept_in_float32(model, name + WEIGHT, torch.float16))
        ):
            yield name


def _fits(layer: Any) -> bool:
    """Whether every K is a multiple of 16, and experts have an activation that is known."""
    if isinstance(layer, nn.Linear):
        return layer.in_features % BLOCK == 0
    _, hidden, intermediate = in_rows(layer, DOWN_STACK, layer.down_proj).shape
    return is_activation_known(layer) and hidden % BLOCK == intermediate % BLOCK == 0
