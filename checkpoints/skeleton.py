"""A language model without weights: it tells which tensors of a checkpoint are linear layers.

It is transformers' own model on the meta device, so the names are transformers' too.
"""

from collections import defaultdict
from collections.abc import Mapping
from copy import deepcopy
from functools import cached_property
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from nvfp4.checkpoints.experts import (
    DOWN_STACK,
    STACK_BIAS,
    as_stored,
    first_stack,
    in_rows,
    is_experts,
    parts_in,
)
from nvfp4.checkpoints.names import DOWN, GATE, UP, WEIGHT, expert_of, in_order
from nvfp4.checkpoints.schemes import BIAS

STACKED = "separate experts"
"""The pattern of an expert's layer for which transformers has no conversion."""
MIXTRAL = "block_sparse_moe"
"""A block of that name calls its experts' layers w1, w3 and w2, as in Mixtral."""


class Place(NamedTuple):
    """The model's tensor into which a checkpoint's tensor goes.

    `pattern` is that of the transformers conversion that builds the model's tensor from several;
    None if the checkpoint's tensor is all of it.
    """

    target: str
    pattern: str | None


class Skeleton:
    """A causal language model of transformers whose parameters have no values.

    There are two kinds of names. A checkpoint's names are those that engines know, with separate
    layers for each expert. The model's own names are transformers', with the experts of a block in
    one tensor.
    """

    def __init__(self, config: Any, dtype: torch.dtype = torch.bfloat16, model: Any = None) -> None:
        """Take a model that transformers made of this config, or make its own."""
        self.model = model or _without_values(config, dtype)
        self._keep_float32(dtype)
        self.modules: dict[str, nn.Module] = dict(self.model.named_modules())

    def _keep_float32(self, dtype: torch.dtype) -> None:
        """Set tensors that the model keeps in float32 to that dtype, as from_pretrained does."""
        for name, tensor in self.model.state_dict(keep_vars=True).items():
            if is_kept_in_float32(self.model, name, dtype):
                path, _, leaf = name.rpartition(".")
                kept = tensor.detach().float()
                if isinstance(tensor, nn.Parameter):
                    kept = nn.Parameter(kept, tensor.requires_grad)
                setattr(self.model.get_submodule(path), leaf, kept)

    @cached_property
    def _conversions(self) -> list[Any]:
        """The renamings and stackings that transformers applies to what it reads."""
        from transformers.conversion_mapping import get_model_conversion_mapping
        from transformers.core_model_loading import PrefixChange

        found = get_model_conversion_mapping(self.model, add_legacy=False)
        return [each for each in found if not isinstance(each, PrefixChange)]

    @cached_property
    def parameters(self) -> dict[str, Tensor]:
        """The model's tensors by its own names, without values."""
        return dict(self.model.state_dict())

    @cached_property
    def _converters(self) -> dict[str, Any]:
        """The conversions that build tensors from others, by the patterns of the latter."""
        from transformers.core_model_loading import WeightConverter

        found = [each for each in self._conversions if isinstance(each, WeightConverter)]
        return {pattern: each for each in found for pattern in each.source_patterns}

    def place(self, name: str) -> Place:
        """Find the place of a checkpoint's tensor in the model.

        Separate experts have a place also where transformers reads only experts in one tensor.
        """
        if name in self.parameters:
            return Place(name, None)
        found = self._renamed(name)
        expert = expert_of(_layer_of(found.target))
        if expert is None or found.pattern is not None:
            return found
        first = first_stack(self.modules.get(expert.experts))
        stack = f"{expert.experts}.{DOWN_STACK if expert.part == DOWN else first}"
        if found.target.endswith(f".{BIAS}"):
            stack += STACK_BIAS
        return Place(stack, STACKED) if stack in self.parameters else found

    def _renamed(self, name: str) -> Place:
        """Find the place of a checkpoint's tensor by the conversions of transformers."""
        from transformers.core_model_loading import WeightRenaming, rename_source_key

        renamings = [each for each in self._conversions if isinstance(each, WeightRenaming)]
        converters = list(dict.fromkeys(self._converters.values()))
        prefix = self.model.base_model_prefix
        return Place(*rename_source_key(name, renamings, converters, prefix, self.parameters))

    def made_of(self, target: str, parts: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Build the model's tensors, by name, from all of a checkpoint's tensors for one target.

        A block's experts in one tensor are an example.

        Raises:
            ValueError: they do not fit together.
        """
        places = {name: self.place(name) for name in sorted(parts, key=in_order)}
        if all(place.pattern == STACKED for place in places.values()):
            return {target: self._stacked(target, {name: parts[name] for name in places})}
        converter = deepcopy(self._converters[str(next(iter(places.values())).pattern)])
        for name, place in places.items():
            converter.add_tensor(target, name, place.pattern, parts[name])
        try:
            made = converter.convert(target, model=self.model, config=self.model.config)
        except (ValueError, RuntimeError, KeyError, IndexError) as error:
            names = f"{next(iter(places))} and {len(places) - 1} more"
            raise ValueError(f"{target} cannot be made of {names}: {error}") from error
        return {
            name: tensor[0] if isinstance(tensor, list) else tensor for name, tensor in made.items()
        }

    def _stacked(self, target: str, parts: Mapping[str, Tensor]) -> Tensor:
        """Stack the experts of a block, in order, as the model's class has them."""
        found: dict[int, dict[str, Tensor]] = defaultdict(dict)
        for name, tensor in parts.items():
            expert = expert_of(_layer_of(name))
            assert expert is not None
            found[expert.expert][expert.part] = tensor
        path, _, leaf = target.rpartition(".")
        experts = self.modules[path]
        try:
            made = torch.stack(
                [
                    torch.cat([found[e][part] for part in parts_in(experts, leaf)])
                    for e in range(len(found))
                ]
            )
        except (KeyError, RuntimeError) as error:
            names = f"{next(iter(parts))} and {len(parts) - 1} more"
            raise ValueError(f"{target} cannot be made of {names}: {error!r}") from error
        return as_stored(experts, leaf, made)

    def experts_in(self, name: str, tensor: Tensor) -> dict[str, Tensor]:
        """Split a checkpoint's tensor with a block's experts into their layers [N, K].

        The layers have the names that engines know for separate experts. A tensor of biases gives
        the bias [N] of each layer. The result is empty for other tensors, and for experts of a kind
        that is not known.
        """
        target, pattern = self.place(name)
        path, _, leaf = target.rpartition(".")
        experts = self.modules.get(path)
        parts = parts_in(experts, leaf)
        if pattern == STACKED or not parts or not is_experts(experts):
            return {}
        if pattern is not None:
            if expert_of(name.removesuffix(WEIGHT)):
                return {}
            tensor = self.made_of(target, {name: tensor})[target]
        module = name.removesuffix(WEIGHT).rpartition(".")[0]
        module = module if module.endswith(".experts") else f"{module}.experts"
        names = {GATE: "w1", UP: "w3", DOWN: "w2"} if MIXTRAL in module else {}
        ending = f".{BIAS}" if leaf.endswith(STACK_BIAS) else WEIGHT
        return {
            f"{module}.{e}.{names.get(part, part)}{ending}": rows
            for e, expert in enumerate(in_rows(experts, leaf, tensor))
            for part, rows in zip(parts, expert.chunk(len(parts)), strict=True)
        }

    def originals(self, name: str, tensor: Tensor) -> dict[str, Tensor]:
        """Split one of the model's tensors into those of a checkpoint, under their names there.

        Experts in one tensor become separate ones. A tensor that already has the name of a
        checkpoint's is left as it is.
        """
        from transformers.core_model_loading import revert_weight_conversion

        if name not in self.parameters or not self._conversions:
            return {name: tensor}
        # transformers keeps the conversions here itself; without this it searches at every call.
        self.model._weight_conversions = self._conversions
        return revert_weight_conversion(self.model, {name: tensor})

    def path(self, module: str) -> str:
        """The path of a checkpoint's layer in the model; for an expert's, that of all experts."""
        target, pattern = self.place(module + WEIGHT)
        if pattern is not None:  # only the layers of experts are known to be parts of a tensor
            return target.rpartition(".")[0] if expert_of(module) else module
        path = target.removesuffix(WEIGHT)
        return path.rsplit(".", 2)[0] if expert_of(module) else path

    def is_linear(self, module: str) -> bool:
        """Whether a checkpoint's layer is a linear layer of any kind, or an expert's."""
        found = self.modules.get(self.path(module))
        return is_experts(found) if expert_of(module) else isinstance(found, nn.Linear)

    def is_plain(self, module: str) -> bool:
        """Whether a linear layer computes x W^T + b, and no more."""
        found = self.modules.get(self.path(module))
        return expert_of(module) is not None or is_plain_linear(found)

    def may_be_linear(self, module: str) -> bool:
        """Whether a checkpoint's layer with a matrix may be a linear layer, or several.

        Embeddings and convolutions of the model are not. A layer that the model does not have may
        be one.
        """
        found = self.modules.get(self.path(module))
        return not isinstance(found, nn.Embedding | nn.modules.conv._ConvNd)

    def is_kept_in_float32(self, module: str) -> bool:
        """Whether the model's class keeps a checkpoint's layer in float32 for some dtype."""
        # With float16 it keeps all that it keeps with bfloat16, and more.
        return is_kept_in_float32(self.model, self.path(module) + WEIGHT, torch.float16)

    def is_of_language_model(self, module: str) -> bool:
        """Whether a checkpoint's layer is in the part that reads text: no vision, no projector."""
        if not hasattr(self.model.config, "text_config"):
            return True
        decoder = self.model.get_decoder()
        inside = [path for path, each in self.modules.items() if each is decoder]
        return any(f"{self.path(module)}.".startswith(f"{path}.") for path in inside)

    def is_head(self, module: str) -> bool:
        """Whether a checkpoint's layer computes the logits."""
        return self.modules.get(self.path(module)) is self.model.get_output_embeddings()

    @cached_property
    def head(self) -> str:
        """The checkpoint's name of the linear layer that computes the logits; "" without one."""
        head = self.model.get_output_embeddings()
        paths = (path for path, each in self.modules.items() if each is head)
        found = next(paths, "") if isinstance(head, nn.Linear) else ""
        return self._name_of(found + WEIGHT).removesuffix(WEIGHT) if found else ""

    def tied_to(self, name: str) -> str:
        """The checkpoint's tensor that gives a tied one its values; "" for one that is not tied."""
        found = self.model.all_tied_weights_keys.get(self.place(name).target)
        return self._name_of(found) if found else ""

    def _name_of(self, target: str) -> str:
        """The checkpoint's name of a tensor of the model that is all of one there."""
        return next(iter(self.originals(target, self.parameters[target])))


def _layer_of(name: str) -> str:
    """The layer of which this is the weight or the bias."""
    return name.removesuffix(WEIGHT).removesuffix(f".{BIAS}")


def without_quantization(config: Any) -> Any:
    """Remove a configuration's quantization: transformers would make quantized layers itself."""
    for part in (config, getattr(config, "text_config", None)):
        if part is not None and hasattr(part, "quantization_config"):
            del part.quantization_config
    return config


def auto_class(config: Any) -> Any:
    """Choose the AutoModel class of transformers that makes the class which a checkpoint names.

    A vision-language checkpoint names one that has the text's layers among others.
    AutoModelForCausalLM may have another class for it, with the text's layers alone.
    """
    import transformers

    kinds = ("AutoModelForCausalLM", "AutoModelForImageTextToText", "AutoModelForMultimodalLM")
    autos = [getattr(transformers, kind) for kind in kinds if hasattr(transformers, kind)]
    classes = [(auto, auto._model_mapping.get(type(config), None)) for auto in autos]
    for auto, found in classes:
        if getattr(found, "__name__", None) in (config.architectures or ()):
            return auto
    return next((auto for auto, found in classes if found is not None), autos[0])


def _without_values(config: Any, dtype: torch.dtype) -> Any:
    from accelerate import init_empty_weights

    with init_empty_weights():  # buffers keep their values: some of them are in no file
        return auto_class(config).from_config(config, dtype=dtype)


def is_kept_in_float32(model: Any, name: str, dtype: torch.dtype) -> bool:
    """Whether a transformers model that is loaded with `dtype` keeps a tensor in float32."""
    from transformers.core_model_loading import build_glob_alternation

    plan = model._get_dtype_plan(dtype)
    return bool(plan) and build_glob_alternation(list(plan))[0].search(name) is not None


def is_plain_linear(module: nn.Module | None) -> bool:
    """Whether a module computes x W^T + b; some subclasses of nn.Linear compute something else."""
    return isinstance(module, nn.Linear) and type(module).forward is nn.Linear.forward
