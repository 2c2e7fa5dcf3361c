"""Quantizing a model block by block, by methods that look at the inputs of each layer.

A block gets the hidden states that the quantized blocks before it make of the calibration text.
Its layers' inputs are recorded, its layers quantized, and its outputs computed again. So the text's
hidden states, and one block in float32 with its layers' inputs, are at work at a time.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from nvfp4.checkpoints.blocks import Blocks, hooked
from nvfp4.checkpoints.experts import (
    DOWN_STACK,
    activated,
    as_stored,
    first_stack,
    is_sorted_by_caller,
    parts_in,
    stacks_of,
)
from nvfp4.checkpoints.folding import Folding, find_foldings
from nvfp4.checkpoints.names import DOWN, WEIGHT, expert_of
from nvfp4.checkpoints.plan import Plan
from nvfp4.quantization import GPTQ, MSE, RTN, Packed, global_scale_of, quantize_matrix
from nvfp4.quantization.awq import search_factors
from nvfp4.quantization.errors import LayerError, Operands, decoded, layer_error
from nvfp4.spec.quantize import global_scale_of_amax, round_trip

MIN_TOKENS = 64
"""An expert that fewer tokens of the text reach is quantized without its inputs, by mse."""

SAMPLE = 512
"""The number of tokens on which factors are searched and errors measured."""


class Layer(NamedTuple):
    """A quantized layer: packed weight, its global scale and its largest input, float32 []."""

    packed: Packed
    global_scale: Tensor
    input_amax: Tensor


@dataclass
class Result:
    """What came of one block: layers and changed floats by their names in the checkpoint."""

    layers: dict[str, Layer] = field(default_factory=dict)
    floats: dict[str, Tensor] = field(default_factory=dict)
    errors: list[LayerError] = field(default_factory=list)


class Group(NamedTuple):
    """Layers with one input: their names, float32 weights as folded so far, and the input [T, K].

    amax: the largest input that the layers are calibrated for, float32 [].
    before: weights and input without factors, if they have any.
    """

    modules: tuple[str, ...]
    weights: list[Tensor]
    x: Tensor
    amax: Tensor
    before: tuple[list[Tensor], Tensor] | None = None


class Layerwise:
    """Quantizes the blocks of a model in order; iterating over it gives each block's result."""

    def __init__(self, plan: Plan, model: Any, tokens: Tensor) -> None:
        self._plan, self._method = plan, plan.method
        self._path = {module: plan.source.skeleton.path(module) for module in plan.in_blocks}
        self._name_of = {plan.source.skeleton.place(n).target: n for n in plan.source.tensors}
        self._blocks = Blocks(model, tokens, sorted(self._path.values()))
        self._foldings: dict[object, list[Folding]] = {}

    def __len__(self) -> int:
        return len(self._blocks)

    @torch.inference_mode()
    def __iter__(self) -> Iterator[Result]:
        for index in range(len(self)):
            yield self._quantize_block(index)
            if index + 1 < len(self):
                self._blocks.advance(index)

    def _quantize_block(self, index: int) -> Result:
        block: Any = self._blocks[index].float()
        prefix = f"{self._blocks.prefix}.{index}."
        inside = {m: p.removeprefix(prefix) for m, p in self._path.items() if p.startswith(prefix)}
        linears = {path: m for m, path in inside.items() if not expert_of(m)}
        experts = sorted({path for m, path in inside.items() if expert_of(m)})
        device = self._blocks.hidden[0].device
        weights = {m: self._read(m).to(device) for m in linears.values()}
        for path, module in linears.items():
            block.get_submodule(path).weight = nn.Parameter(weights[module], False)
        seen = self._inputs(index, block, [*linears, *experts])
        result = Result()
        factors = self._fold(index, block, linears, seen, result) if self._method.factors else {}
        for group in self._groups(block, linears, seen, factors, weights):
            for module, quantized in self._quantize(group, result):
                path = inside[module]
                block.get_submodule(path).weight = nn.Parameter(quantized, False)
                if self._plan.quantizes_activations:
                    p = global_scale_of_amax(group.amax)
                    block.get_submodule(path).register_forward_pre_hook(partial(_round_input, p))
        for path in experts:
            modules = {m: e for m in inside if inside[m] == path and (e := expert_of(m))}
            parts = {(e.expert, e.part): m for m, e in modules.items()}
            self._quantize_experts(block.get_submodule(path), parts, seen[path], result)
        return result

    def _read(self, module: str) -> Tensor:
        return self._plan.source.read(module + WEIGHT).float()

    def _inputs(self, index: int, block: Any, paths: Sequence[str]) -> dict[str, list[Any]]:
        """Run the block, and keep for each path what its module is called with in each window."""
        seen: dict[str, list[Any]] = {path: [] for path in paths}

        def hook_of(path: str) -> Any:
            def hook(module: nn.Module, args: Any, kwargs: Any) -> None:
                seen[path].append((*args, *kwargs.values()))

            return hook

        with hooked((block.get_submodule(path), hook_of(path)) for path in paths):
            for _ in self._blocks.run(index):
                pass
        for path, calls in seen.items():
            if not calls or not all(call[0].isfinite().all() for call in calls):
                got = "NaN or Inf" if calls else "none"
                raise ValueError(f"--calibrate needs finite inputs of {path}, got {got}")
        return seen

    # AWQ

    def _fold(
        self,
        index: int,
        block: Any,
        linears: dict[str, str],
        seen: dict[str, list[Any]],
        result: Result,
    ) -> dict[str, Tensor]:
        """Search factors and fold them into the block; return those of each layer, by its path.

        The layers' weights in the block are multiplied by their factors.
        """
        key = type(block), tuple(linears)
        if key not in self._foldings:
            self._foldings[key] = find_foldings(
                block, set(linears), lambda: next(self._blocks.run(index))
            )
        factors: dict[str, Tensor] = {}
        for folding in self._foldings[key]:
            layers = [block.get_submodule(path) for path in folding.layers]
            x = _joined(seen[folding.layers[0]])
            w = torch.cat([layer.weight for layer in layers])
            f = search_factors(_sample(x), w, self._outputs, folding.tied)
            maker = block.get_submodule(folding.maker)
            name = self._name_of.get(f"{self._blocks.prefix}.{index}.{folding.maker}{WEIGHT}")
            dtype = self._plan.source.tensors[name].dtype if name else torch.float32
            f = folding.fold(block, f, dtype)
            for path, layer in zip(folding.layers, layers, strict=True):
                layer.weight = nn.Parameter(layer.weight * f, False)
                factors[path] = f
            if folding.maker not in linears and name:
                result.floats[name] = maker.weight.data.to(dtype)
        return factors

    def _outputs(self, x: Tensor, w: Tensor) -> Tensor:
        """What a layer of weight w computes of x if both are quantized as the checkpoint says."""
        return self._rounded(x) @ round_trip(w, global_scale_of([w], RTN)).T

    def _rounded(self, x: Tensor) -> Tensor:
        return round_trip(x) if self._plan.quantizes_activations else x

    # rounding

    def _groups(
        self,
        block: Any,
        linears: dict[str, str],
        seen: dict[str, list[Any]],
        factors: dict[str, Tensor],
        weights: dict[str, Tensor],
    ) -> Iterator[Group]:
        """Yield the linear layers that share a global scale together, with their input."""
        path_of = {module: path for path, module in linears.items()}
        for path, module in linears.items():
            modules = self._plan.siblings(module)
            if modules[0] != module:
                continue
            x = _joined(seen[path])
            folded = [block.get_submodule(path_of[each]).weight.data for each in modules]
            before = None
            if any(not torch.equal(w, weights[m]) for w, m in zip(folded, modules, strict=True)):
                before = [weights[each] for each in modules], x
            if path in factors:
                x = x / factors[path]
            yield Group(modules, folded, x, x.abs().amax(), before)

    def _quantize(self, group: Group, result: Result) -> Iterator[tuple[str, Tensor]]:
        """Quantize a group's weights; yield each layer's name and its decoded weight."""
        tokens, rounding, note = len(group.x), self._method.rounding, ""
        if rounding == GPTQ and tokens < MIN_TOKENS:
            rounding, note = MSE, f"{tokens} tokens reach it: quantized by {MSE}"
        p = self._global_scales(group.weights, rounding)
        hessian = group.x.T @ group.x if rounding == GPTQ else None
        rows = [len(w) for w in group.weights]
        by_row = torch.cat([each.expand(n) for each, n in zip(p, rows, strict=True)])
        packed = quantize_matrix(torch.cat(group.weights), by_row, rounding, hessian)
        parts = zip(packed.data.split(rows), packed.scales.split(rows), strict=True)
        weights, x = group.before or (group.weights, group.x)
        for module, each, part, w, folded in zip(
            group.modules, p, parts, weights, group.weights, strict=True
        ):
            layer = Packed(*part)
            quantized = decoded(layer, each)
            result.layers[module] = Layer(layer, each, group.amax)
            before, after = Operands(w, _sample(x)), Operands(folded, _sample(group.x))
            found = layer_error(module, before, after, quantized, self._plan.quantizes_activations)
            result.errors.append(found._replace(tokens=tokens, note=note))
            yield module, quantized

    def _global_scales(self, weights: list[Tensor], rounding: str) -> list[Tensor]:
        storable = self._plan.format.storable
        if self._plan.separate_scales:
            return [storable(global_scale_of([w], rounding)) for w in weights]
        return [storable(global_scale_of(weights, rounding))] * len(weights)

    def _quantize_experts(
        self, module: Any, parts: dict[tuple[int, str], str], calls: list[Any], result: Result
    ) -> None:
        """Quantize experts one by one, each with the tokens that reach it."""
        x = torch.cat([call[0].reshape(-1, call[0].shape[-1]) for call in calls])
        first, count = first_stack(module), module.down_proj.shape[0]
        bias = stacks_of(module).w13_bias
        if is_sorted_by_caller(module):
            each = torch.arange(count, device=x.device)
            ids = torch.cat([each.repeat_interleave(len(call[0]) // count) for call in calls])
            ids = ids[:, None]
        else:
            ids = torch.cat([call[1].reshape(-1, call[1].shape[-1]) for call in calls])
        amax, largest = x.abs().amax(), x.new_zeros(count)
        for expert in range(count):
            own = x[torch.where(ids == expert)[0]]
            names = tuple(parts[expert, part] for part in parts_in(module, first))
            weights = [self._read(name).to(x.device) for name in names]
            gate_up = dict(self._quantize(Group(names, weights, own, amax), result))
            w13 = torch.cat([gate_up[name] for name in names])
            h = activated(module, own @ w13.T + (0 if bias is None else bias[expert]))
            largest[expert] = h.abs().amax() if len(h) else 0.0
            name = parts[expert, DOWN]
            group = Group((name,), [self._read(name).to(x.device)], h, largest[expert])
            ((_, w2),) = self._quantize(group, result)
            for leaf, w in ((first, w13), (DOWN_STACK, w2)):
                getattr(module, leaf).data[expert] = as_stored(module, leaf, w[None])[0]
        for expert in range(count):
            if not largest[expert] > 0:  # no token went there
                name = parts[expert, DOWN]
                result.layers[name] = result.layers[name]._replace(input_amax=largest.amax())


def _joined(calls: list[Any]) -> Tensor:
    """Join a linear layer's inputs in all windows to x [T, K]."""
    return torch.cat([call[0].reshape(-1, call[0].shape[-1]) for call in calls])


def _sample(x: Tensor) -> Tensor:
    return x[:: max(1, len(x) // SAMPLE)][:SAMPLE]


def _round_input(p: Tensor, module: nn.Module, args: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
    x = args[0]
    return round_trip(x.reshape(-1, x.shape[-1]), p).view(x.shape), *args[1:]
