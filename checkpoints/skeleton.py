"""A language model without its weights: which of a checkpoint's tensors are linear layers, and what
they are called. transformers' own model says so, on the meta device.
"""

from functools import cached_property
from typing import Any

import torch
from torch import Tensor, nn

from nvfp4.checkpoints.names import WEIGHT, expert_of


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
        """Whether a checkpoint's layer is a linear layer, or an expert's (is_experts)."""
        found = self.modules.get(self.path(module))
        if expert_of(module):
            return is_experts(found)
        return isinstance(found, nn.Linear)


def is_experts(module: nn.Module | None) -> bool:
    """Whether a module is a block's experts without biases, gate_up_proj [E, 2I, H] (gate's rows
    first) and down_proj [E, H, I].
    """
    gate_up = getattr(module, "gate_up_proj", None)
    down = getattr(module, "down_proj", None)
    if not isinstance(gate_up, nn.Parameter) or not isinstance(down, nn.Parameter):
        return False
    (experts, both, hidden), expected = gate_up.shape, tuple(down.shape)
    biased = any("bias" in name for name, _ in module.named_parameters())  # type: ignore[union-attr]
    return not biased and expected == (experts, hidden, both // 2)
