"""Writing a checkpoint of a model in memory whose layers are those of nvfp4.layers."""

import json
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from nvfp4.checkpoints.experts import DOWN_STACK, GATE_UP_STACK, UP_STACK
from nvfp4.checkpoints.files import TensorSpec
from nvfp4.checkpoints.load import Experts, SortedExperts
from nvfp4.checkpoints.names import DOWN, GATE, UP, WEIGHT, expert_of
from nvfp4.checkpoints.schemes import (
    BIAS,
    CONFIG_FILE,
    EVERY_LINEAR,
    FORMATS,
    MODELOPT,
    PRE_QUANT_SCALE,
    QUANT_CONFIG_FILE,
    Format,
    Group,
    Scheme,
)
from nvfp4.layers import Linear, MoE, PackedModule, SwiGLUMLP
from nvfp4.spec.format import BLOCK, LINEAR, W4A4
from nvfp4.spec.glu import columns_per_output
from nvfp4.spec.swizzle import unswizzle_scales
from nvfp4.tensors import QuantizedTensor

HEAD = "lm_head"

TIED = "all_tied_weights_keys"
"""What transformers' models have, and no other module."""


class Contents(NamedTuple):
    """What a checkpoint of a model holds: its tensors by name, and the scheme."""

    tensors: dict[str, Tensor]
    scheme: Scheme


def save_model(
    model: nn.Module, folder: Path | str, format: str = MODELOPT.name, shard_size: str = "5GB"
) -> None:
    """Write a quantized model as an NVFP4 checkpoint, in a new or empty folder.

    A model of transformers is written with its configuration: `load_model`, `from_pretrained` with
    nvfp4.transformers, and serving engines load the folder. Of another module the tensors are
    written, under its own names, and the scheme. All appears or nothing.

    Args:
        model: what quantize_model, load_model or from_pretrained returned, or any torch module with
            layers of nvfp4.layers.
        folder: the checkpoint's folder.
        format: "modelopt", or "compressed-tensors", whose files hold 1 / p for a global scale p:
            read back, it may differ from p in the last bit.
        shard_size: the largest size of a file, such as "5GB".

    Raises:
        ValueError: a layer is not one that the format can hold, or there is no NVFP4 layer.
    """
    from nvfp4.checkpoints.writer import ShardedWriter, published, refuse_existing

    if format not in FORMATS:
        need = " or ".join(map(repr, FORMATS))
        raise ValueError(f"save_model: format needs {need}, got {format!r}")
    refuse_existing(Path(folder))
    tensors, scheme = contents(model, FORMATS[format], own_names=False)
    specs = {name: TensorSpec(tuple(t.shape), t.dtype) for name, t in tensors.items()}
    with published(Path(folder)) as partial:
        with ShardedWriter(partial, specs, shard_size) as writer:
            for name, tensor in tensors.items():
                writer.write(name, tensor.detach().cpu())
        _write_configs(partial, model, scheme)


def contents(model: Any, format: Format, own_names: bool) -> Contents:
    """Name the tensors of a checkpoint of this model.

    own_names: name tensors in floats and linear layers as a model of transformers does itself. Its
        save_pretrained renames them. Otherwise they have the names of checkpoints.
    """
    layers = {n: m for n, m in model.named_modules() if isinstance(m, PackedModule)}
    if not layers:
        raise ValueError("save_model: model needs layers of nvfp4.layers, got none")
    dense = _floats(model, layers)
    experts: dict[str, Tensor] = {}
    activations: dict[str, str] = {}
    for name, layer in layers.items():
        if isinstance(layer, Linear):
            dense |= _linear(name, layer, format)
            activations[_original(model, name)] = layer.activation
        elif isinstance(layer, SwiGLUMLP | MoE):
            parts = _parts(model, name, layer)
            experts |= _gated(parts, layer, format)
            kind = layer.activation_format
            activations |= {module: kind for each in parts for module in (*each.first, each.down)}
        else:
            need, got = "a layer that checkpoints know", type(layer).__name__
            raise ValueError(f"save_model: {name} needs to be {need}, got {got}")
    tensors = (dense if own_names else _renamed(model, dense)) | experts
    ignored = [_original(model, n) for n, m in model.named_modules() if isinstance(m, nn.Linear)]
    calibrated = any(name.endswith(f".{format.input_global_scale}") for name in tensors)
    groups = _groups(activations, calibrated)
    return Contents(tensors, Scheme(format, groups, tuple(dict.fromkeys([HEAD, *ignored]))))


def _groups(activations: dict[str, str], calibrated: bool) -> tuple[Group, ...]:
    """Group the layers, by their names, that have the same form of activations."""
    kinds = sorted(set(activations.values()))
    if len(kinds) == 1:
        return (Group((EVERY_LINEAR,), calibrated and kinds == [W4A4], kinds[0]),)
    return tuple(
        Group(
            tuple(name for name, each in activations.items() if each == kind),
            calibrated and kind == W4A4,
            kind,
        )
        for kind in kinds
    )


def _floats(model: Any, layers: Mapping[str, nn.Module]) -> dict[str, Tensor]:
    """The tensors of a model outside its NVFP4 layers; of those that are tied, one."""
    ours = tuple(f"{name}." for name in layers)
    found = {n: t for n, t in model.state_dict().items() if not n.startswith(ours)}
    for name, kept in getattr(model, TIED, {}).items():
        if name in found and kept in found and found[name].data_ptr() == found[kept].data_ptr():
            del found[name]
    return found


def _renamed(model: Any, tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    """Give tensors of a transformers model the names of checkpoints; others stay as they are."""
    if not hasattr(model, TIED):
        return tensors
    from transformers.core_model_loading import revert_weight_conversion

    return revert_weight_conversion(model, tensors)


def _original(model: Any, module: str) -> str:
    """The name in checkpoints of a linear layer of the model."""
    weight = torch.empty(BLOCK, BLOCK, dtype=torch.float32, device="meta")
    return next(iter(_renamed(model, {module + WEIGHT: weight}))).removesuffix(WEIGHT)


def _linear(name: str, layer: Linear, format: Format) -> dict[str, Tensor]:
    found = _weight(name, layer.packed(), format)
    if layer.input_global_scale is not None:
        found[f"{name}.{format.input_global_scale}"] = _scalar(layer.input_global_scale, format)
    for leaf, tensor in ((BIAS, layer.bias), (PRE_QUANT_SCALE, layer.pre_quant_scale)):
        if tensor is not None:
            found[f"{name}.{leaf}"] = tensor
    return found


def _weight(name: str, weight: QuantizedTensor, format: Format) -> dict[str, Tensor]:
    if weight.global_scale.numel() != 1:
        need = "one global scale (a fused layer's parts are saved apart)"
        got = f"{weight.global_scale.numel()}"
        raise ValueError(f"save_model: {name} needs {need}, got {got}")
    linear = unswizzle_scales(weight.scales, *weight.shape)
    return {
        f"{name}.{format.data}": weight.data,
        f"{name}.{format.scales}": linear,
        f"{name}.{format.global_scale}": _scalar(weight.global_scale, format),
    }


def _scalar(p: Tensor, format: Format) -> Tensor:
    return format.to_stored(p).reshape(format.scale_shape)


class Parts(NamedTuple):
    """The names of one expert's linear layers, or of a gated MLP's.

    first: those of gate and up, or that of up where there is no gate.
    """

    first: tuple[str, ...]
    down: str


def _gated(names: list[Parts], layer: Any, format: Format) -> dict[str, Tensor]:
    """The tensors of experts, or of a gated MLP, layer by layer."""
    w13, w2 = layer.packed()
    several = isinstance(layer, MoE)
    found: dict[str, Tensor] = {}
    for index, parts in enumerate(names):
        first, down = (w13[index], w2[index]) if several else (w13, w2)
        x, h = layer.x_global_scale, layer.h_global_scale
        if h is not None and h.numel() > 1:
            h = h[index]
        for name, part in zip(parts.first, _split(first, len(parts.first)), strict=True):
            found |= _weight(name, part, format) | _input_scale(name, x, format)
        found |= _weight(parts.down, down, format) | _input_scale(parts.down, h, format)
        for layers, bias in ((parts.first, layer.w13_bias), ((parts.down,), layer.w2_bias)):
            if bias is not None:
                rows = (bias[index] if several else bias).chunk(len(layers))
                found |= {f"{name}.{BIAS}": b for name, b in zip(layers, rows, strict=True)}
    return found


def _input_scale(name: str, p: Tensor | None, format: Format) -> dict[str, Tensor]:
    return {} if p is None else {f"{name}.{format.input_global_scale}": _scalar(p, format)}


def _split(w13: QuantizedTensor, count: int) -> Iterator[QuantizedTensor]:
    """Yield the parts [I, H] of w13 [count*I, H], their scales swizzled."""
    rows, k = w13.shape
    linear = unswizzle_scales(w13.scales, rows, k)
    scales = w13.global_scale.reshape(-1).expand(count)
    data_of, scales_of = w13.data.chunk(count), linear.chunk(count)
    for data, block_scales, p in zip(data_of, scales_of, scales, strict=True):
        yield QuantizedTensor(data, block_scales, p, LINEAR).swizzled()


def _parts(model: Any, name: str, layer: SwiGLUMLP | MoE) -> list[Parts]:
    """The names that a checkpoint gives to the linear layers of a gated module."""
    kinds = (GATE, UP) if columns_per_output(layer.activation) == 2 else (UP,)
    if isinstance(layer, SwiGLUMLP):
        return [_named(name, kinds)]
    around = name.rpartition(".")[0]
    if isinstance(model.get_submodule(around), Experts | SortedExperts):
        name = around
    first = GATE_UP_STACK if len(kinds) == 2 else UP_STACK
    (experts, rows, half_k), (_, hidden, half_i) = layer.w13.shape, layer.w2.shape
    stacked = {
        f"{name}.{first}": torch.empty(
            experts, rows, 2 * half_k, dtype=torch.float32, device="meta"
        ),
        f"{name}.{DOWN_STACK}": torch.empty(
            experts, hidden, 2 * half_i, dtype=torch.float32, device="meta"
        ),
    }
    modules = [each.removesuffix(WEIGHT) for each in _renamed(model, stacked)]
    known = {(e.expert, e.part): each for each in modules if (e := expert_of(each))}
    if not known:
        return [_named(f"{name}.{index}", kinds) for index in range(experts)]
    return [
        Parts(tuple(known[index, part] for part in kinds), known[index, DOWN])
        for index in range(experts)
    ]


def _named(module: str, kinds: tuple[str, ...]) -> Parts:
    first = tuple(f"{module}.{part}".lstrip(".") for part in kinds)
    return Parts(first, f"{module}.{DOWN}".lstrip("."))


def _write_configs(folder: Path, model: Any, scheme: Scheme) -> None:
    """Write the model's configuration, if it has one, and the scheme."""
    if (apart := scheme.hf_quant_config()) is not None:
        (folder / QUANT_CONFIG_FILE).write_text(json.dumps(apart, indent=2) + "\n")
    config = {}
    if hasattr(model, TIED):
        model.config.save_pretrained(folder)
        config = json.loads((folder / CONFIG_FILE).read_text())
        config["architectures"] = [type(model).__name__]
        config["dtype"] = str(model.dtype).removeprefix("torch.")
        if model.can_generate():
            model.generation_config.save_pretrained(folder)
    config["quantization_config"] = scheme.config()
    (folder / CONFIG_FILE).write_text(json.dumps(config, indent=2) + "\n")
