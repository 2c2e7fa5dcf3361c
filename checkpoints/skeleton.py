"""A language model without its weights: which of a checkpoint's tensors are linear layers, and what
they are called. transformers' own model says so, on the meta device.
"""

from functools import cached_property
from typing import Any

import torch
from torch import Tensor, nn

from nvfp4.checkpoints.names import WEIGHT, expert_of
from nvfp4.spec.glu import ACTIVATIONS, glu

PROBE = torch.linspace(-24, 24, 97)
"""Values of gate and up that a function of both is tried out on: beyond any model's limit."""


class Skeleton:
    """A causal language model of transformers, made from its configuration: no parameter is real.

    Names come in two kinds: a checkpoint's, as engines know them (each expert's layers apart), and
    the model's own (transformers has the experts of a block in one tensor).
    """

    def __init__(self, config: Any, dtype: torch.dtype = torch.bfloat16) -> None:
        from accelerate import init_empty_weights
        from transformers import AutoModelForCausalLM

        with init_empty_weights():  # buffers, which no file has, are real
            self.model = AutoModelForCausalLM.from_config(config, dtype=dtype)
        self.modules: dict[str, nn.Module] = dict(self.model.named_modules())

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

    def renamed(self, name: str) -> str:
        """A checkpoint's tensor as the model calls it; experts stay apart."""
        from transformers.core_model_loading import WeightRenaming, rename_source_key

        if name in self.parameters:
            return name

        renamings = [each for each in self._conversions if isinstance(each, WeightRenaming)]
        prefix = self.model.base_model_prefix
        return rename_source_key(name, renamings, [], prefix, self.parameters)[0]

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
        path = self.renamed(module + WEIGHT).removesuffix(WEIGHT)
        return path.rsplit(".", 2)[0] if expert_of(module) else path

    def is_linear(self, module: str) -> bool:
        """Whether a checkpoint's layer is a linear layer of any kind, or one of is_experts."""
        found = self.modules.get(self.path(module))
        return is_experts(found) if expert_of(module) else isinstance(found, nn.Linear)

    def is_plain(self, module: str) -> bool:
        """Whether such a layer is x W^T + b, and no more."""
        found = self.modules.get(self.path(module))
        return expert_of(module) is not None or is_plain_linear(found)

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
