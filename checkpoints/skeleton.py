"""A language model without its weights: which of a checkpoint's tensors are linear layers, and what
they are called. transformers' own model says so, on the meta device.
"""

from collections.abc import Mapping
from copy import deepcopy
from functools import cached_property
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from nvfp4.checkpoints.names import WEIGHT, expert_of, in_order
from nvfp4.spec.glu import ACTIVATIONS, glu

PROBE = torch.linspace(-24, 24, 97)
"""Values of gate and up that a function of both is tried out on: beyond any model's limit."""


class Place(NamedTuple):
    """Where a checkpoint's tensor belongs: the name of one of the model's, and the pattern of
    transformers' conversion that makes the latter of it and others. None: it is the whole of it.
    """

    target: str
    pattern: str | None


class Skeleton:
    """A causal language model of transformers, made from its configuration: no parameter is real.

    Names come in two kinds: a checkpoint's, as engines know them (each expert's layers apart), and
    the model's own (transformers has the experts of a block in one tensor).
    """

    def __init__(self, config: Any, dtype: torch.dtype = torch.bfloat16) -> None:
        from accelerate import init_empty_weights
        from transformers import AutoModelForCausalLM

        with init_empty_weights():  # buffers, some of which no file has, are real
            self.model = AutoModelForCausalLM.from_config(config, dtype=dtype)
        self._keep_float32(dtype)
        self.modules: dict[str, nn.Module] = dict(self.model.named_modules())

    def _keep_float32(self, dtype: torch.dtype) -> None:
        """Give the tensors that the model keeps in float32 that dtype, as from_pretrained does."""
        for name, tensor in self.model.state_dict(keep_vars=True).items():
            if self._is_float32(name, dtype):
                path, _, leaf = name.rpartition(".")
                kept = tensor.detach().float()
                if isinstance(tensor, nn.Parameter):
                    kept = nn.Parameter(kept, tensor.requires_grad)
                setattr(self.model.get_submodule(path), leaf, kept)

    def _is_float32(self, name: str, dtype: torch.dtype) -> bool:
        """Whether a model loaded with `dtype` has one of its tensors in float32."""
        from transformers.core_model_loading import build_glob_alternation

        plan = self.model._get_dtype_plan(dtype)
        return bool(plan) and build_glob_alternation(list(plan))[0].search(name) is not None

    @cached_property
    def _conversions(self) -> list[Any]:
        """How transformers renames and stacks what it reads, for this model."""
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
        """The conversions that build tensors from others, keyed by the patterns of the others."""
        from transformers.core_model_loading import WeightConverter

        found = [each for each in self._conversions if isinstance(each, WeightConverter)]
        return {pattern: each for each in found for pattern in each.source_patterns}

    def place(self, name: str) -> Place:
        """Where a checkpoint's tensor belongs in the model."""
        from transformers.core_model_loading import WeightRenaming, rename_source_key

        if name in self.parameters:
            return Place(name, None)
        renamings = [each for each in self._conversions if isinstance(each, WeightRenaming)]
        converters = list(dict.fromkeys(self._converters.values()))
        prefix = self.model.base_model_prefix
        return Place(*rename_source_key(name, renamings, converters, prefix, self.parameters))

    def made_of(self, target: str, parts: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """What transformers makes of a checkpoint's tensors, all that have one target: the model's
        tensors by their names, such as a block's experts in one.

        Raises:
            ValueError: they do not fit together.
        """
        places = {name: self.place(name) for name in sorted(parts, key=in_order)}
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

    def originals(self, name: str, tensor: Tensor) -> dict[str, Tensor]:
        """One of the model's tensors as a checkpoint has it: under its name there, and of experts
        in one tensor each one's. What is named so already is left as it is.
        """
        from transformers.core_model_loading import revert_weight_conversion

        if name not in self.parameters or not self._conversions:
            return {name: tensor}
        # Where transformers itself keeps them; it would look for them at every call.
        self.model._weight_conversions = self._conversions
        return revert_weight_conversion(self.model, {name: tensor})

    def path(self, module: str) -> str:
        """Where a checkpoint's layer is in the model; of an expert's, the module of all experts."""
        target, pattern = self.place(module + WEIGHT)
        if pattern is not None:  # a part of another tensor: of an expert's layers alone one knows
            return target.rpartition(".")[0] if expert_of(module) else module
        path = target.removesuffix(WEIGHT)
        return path.rsplit(".", 2)[0] if expert_of(module) else path

    def is_linear(self, module: str) -> bool:
        """Whether a checkpoint's layer is a linear layer of any kind, or one of is_experts."""
        found = self.modules.get(self.path(module))
        return is_experts(found) if expert_of(module) else isinstance(found, nn.Linear)

    def is_plain(self, module: str) -> bool:
        """Whether such a layer is x W^T + b, and no more."""
        found = self.modules.get(self.path(module))
        return expert_of(module) is not None or is_plain_linear(found)

    def may_be_linear(self, module: str) -> bool:
        """Whether a checkpoint's layer with a matrix may be a linear layer, or several: all but the
        model's embeddings and convolutions, also what the model does not have.
        """
        found = self.modules.get(self.path(module))
        return not isinstance(found, nn.Embedding | nn.modules.conv._ConvNd)

    def is_kept_in_float32(self, module: str) -> bool:
        """Whether the model's class keeps a checkpoint's layer in float32, for some dtype."""
        return self._is_float32(self.path(module) + WEIGHT, torch.float16)  # bfloat16's, and more

    def is_head(self, module: str) -> bool:
        """Whether a checkpoint's layer gives the logits."""
        return self.modules.get(self.path(module)) is self.model.get_output_embeddings()


def is_plain_linear(module: nn.Module | None) -> bool:
    """Whether a module computes x W^T + b: some of nn.Linear's subclasses do otherwise."""
    return isinstance(module, nn.Linear) and type(module).forward is nn.Linear.forward


def is_experts(module: nn.Module | None) -> bool:
    """Whether a module is a block's experts without biases, gate_up_proj [E, 2I, H] (gate's rows
    first) and down_proj [E, H, I].
    """
    gate_up = getattr(module, "gate_up_proj", None)
    down = getattr(module, "down_proj", None)
    if not isinstance(gate_up, nn.Parameter) or not isinstance(down, nn.Parameter):
        return False
    if getattr(module, "has_bias", False) or not getattr(module, "is_concatenated", True):
        return False
    experts, both, hidden = gate_up.shape
    return tuple(down.shape) == (experts, hidden, both // 2)


def gated(experts: Any, gate_up: Tensor) -> Tensor:
    """What a module of experts makes of gate and up, side by side, [M, 2I]: [M, I]."""
    if hasattr(experts, "_apply_gate"):  # where transformers' modules of experts have it
        return experts._apply_gate(gate_up)
    gate, up = gate_up.chunk(2, dim=-1)
    return experts.act_fn(gate) * up


def gating_of(experts: Any) -> tuple[float | None, str]:
    """The limit and the activation of a module of experts, as spec/glu.py has them: those with
    which it computes the same, tried out.

    Raises:
        ValueError: it is another function.
    """
    gate, up = torch.cartesian_prod(PROBE, PROBE).unbind(-1)
    found = gated(experts, torch.stack([gate, up], dim=-1)).squeeze(-1)
    for limit in (None, getattr(experts, "limit", None), getattr(experts, "swiglu_limit", None)):
        for activation in ACTIVATIONS:
            if torch.allclose(found, glu(gate, up, limit, activation), rtol=1e-4, atol=1e-5):
                return limit, activation
    need = f"{' or '.join(ACTIVATIONS)} of the gate, times up, with or without a limit"
    raise ValueError(f"experts need {need}, got another function in {type(experts).__name__}")
