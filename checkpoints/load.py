"""A language model on NVFP4 layers: transformers' own, with each layer that a checkpoint has in
NVFP4 replaced by one of nvfp4.layers.
"""

import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from nvfp4.checkpoints.checkpoint import Checkpoint
from nvfp4.checkpoints.files import FLOATS
from nvfp4.checkpoints.names import DOWN, UP, expert_of
from nvfp4.checkpoints.skeleton import Skeleton, gating_of, is_experts, is_plain_linear
from nvfp4.layers import MoE

CACHE_SCALES = ("k_scale", "v_scale")
"""Of a quantized key-value cache, which the model here has in floats."""


class Experts(nn.Module):
    """A block's experts as transformers calls them: hidden_states [M, H], top_k_index and
    top_k_weights [M, top_k], to [M, H].
    """

    def __init__(self, moe: MoE) -> None:
        super().__init__()
        self.moe = moe

    def forward(self, hidden_states: Tensor, top_k_index: Tensor, top_k_weights: Tensor) -> Tensor:
        return self.moe(hidden_states, top_k_weights, top_k_index)


def load_model(
    folder: Path | str,
    device: str = "cpu",
    dtype: torch.dtype = torch.bfloat16,
    backend: str = "",
    step: Callable[[str, int], Callable[[], None]] = lambda title, total: lambda: None,
    *,
    activation: str | None = None,
) -> Any:
    """The causal language model of an NVFP4 checkpoint, for transformers' forward and generate.

    Layers in NVFP4 become nvfp4.layers.Linear, each with its own scales, experts nvfp4.layers.MoE;
    the rest is as transformers has it, in `dtype`. Tensors are read one at a time. `step` opens a
    progress bar.

    activation: what NVFP4 weights are multiplied by. None: what the checkpoint says. "nvfp4": W4A4,
        activations are quantized, each token with its own scale unless the checkpoint has one.
        "bf16": W4A16, linear layers leave activations in 16 bits. Experts have no W4A16 yet; they
        run W4A4, with a warning where the checkpoint or the caller says otherwise. (What `convert`
        writes without calibration says W4A16.)

    Raises:
        ValueError: a tensor is damaged or missing, or is not one of the model's.
    """
    from transformers import AutoConfig, GenerationConfig

    checkpoint = Checkpoint(folder, activation)
    config = AutoConfig.from_pretrained(folder)
    if hasattr(config, "quantization_config"):
        del config.quantization_config  # these layers are put in here
    loader = _Loader(checkpoint, Skeleton(config, dtype), device, backend)
    done = step(f"load {checkpoint.folder.name}", len(checkpoint.files.names))
    for name in checkpoint.files.names:
        loader.load(name)
        done()
    model = loader.finished()
    if (checkpoint.folder / "generation_config.json").exists():
        model.generation_config = GenerationConfig.from_pretrained(folder)
    return model


class _Loader:
    def __init__(
        self, checkpoint: Checkpoint, skeleton: Skeleton, device: str, backend: str
    ) -> None:
        self._checkpoint = checkpoint
        self._files = checkpoint.files
        self._skeleton = skeleton
        self._model = skeleton.model
        self._device = device
        self._backend = backend
        self._replaced: set[str] = set()

    def load(self, name: str) -> None:
        """Put one of the checkpoint's tensors where it belongs; of a layer in NVFP4 the first of
        its tensors brings the others.
        """
        module, _, leaf = name.rpartition(".")
        expert = expert_of(module)
        if expert and expert.experts in self._checkpoint.experts:
            self._replace(name, expert.experts)
        elif self._checkpoint.is_quantized(module):
            self._replace(name, module)
        elif expert:
            self._copy_expert(name)
        elif leaf not in CACHE_SCALES:
            self._assign(name)

    def _replace(self, name: str, module: str) -> None:
        if module in self._replaced:
            return
        self._replaced.add(module)
        path = self._skeleton.path(name.rpartition(".")[0])
        old = self._skeleton.modules.get(path)
        layer = self._new(name, module, old)
        layer.to(self._device)
        self._model.set_submodule(path, layer)

    def _new(self, name: str, module: str, old: nn.Module | None) -> nn.Module:
        """The layer in NVFP4 that takes the place of one of the model's."""
        if module in self._checkpoint.experts and is_experts(old):
            limit, activation = gating_of(old)
            moe = self._checkpoint.moe(
                module, swiglu_limit=limit, activation=activation, backend=self._backend
            )
            self._same(name, tuple(moe.packed()[0].shape), tuple(old.gate_up_proj.shape))  # type: ignore[union-attr, arg-type]
            return Experts(moe)
        if isinstance(old, nn.Linear) and is_plain_linear(old):
            linear = self._checkpoint.linear(module, backend=self._backend)
            self._same(name, tuple(linear.packed().shape), (old.out_features, old.in_features))
            return linear
        raise ValueError(f"{self._files.where(name)} needs to be of a linear layer of the model")

    def _same(self, name: str, got: tuple[int, ...], need: tuple[int, ...]) -> None:
        if got != need:
            where = self._files.where(name)
            raise ValueError(
                f"{where} needs a layer {list(need)}, as the model has, got {list(got)}"
            )

    def _copy_expert(self, name: str) -> None:
        """An expert's weight in floats into its part of the model's one tensor of all experts."""
        module = name.rpartition(".")[0]
        experts, expert, part = expert_of(module)  # type: ignore[misc]
        path = self._skeleton.path(module)
        leaf = "down_proj" if part == DOWN else "gate_up_proj"
        owner = self._skeleton.modules.get(path)
        if not is_experts(owner):
            raise ValueError(f"{self._files.where(name)} needs to be of the model's experts")
        whole = getattr(owner, leaf)
        if whole.is_meta:
            whole = nn.Parameter(torch.empty_like(whole, device=self._device), requires_grad=False)
            setattr(owner, leaf, whole)
        rows = whole.shape[1] if part == DOWN else whole.shape[1] // 2
        target = whole[expert, rows if part == UP else 0 :][:rows]
        tensor = self._files.checked(name, FLOATS, dim=2)
        self._same(name, tuple(tensor.shape), tuple(target.shape))
        with torch.no_grad():
            target.copy_(tensor)

    def _assign(self, name: str) -> None:
        target = self._skeleton.renamed(name)
        like = self._skeleton.parameters.get(target)
        if like is None:
            ignored = self._model._keys_to_ignore_on_load_unexpected or ()
            if any(re.search(pattern, target) for pattern in ignored):
                return
            raise ValueError(f"{self._files.where(name)} needs to be one of the model's, got none")
        tensor = self._files.read(name)
        if like.is_floating_point():
            self._files.checked(name, FLOATS, tensor.dim())
        self._same(name, tuple(tensor.shape), tuple(like.shape))
        path, _, leaf = target.rpartition(".")
        owner = self._model.get_submodule(path)
        owner.load_state_dict(
            {leaf: tensor.to(self._device, like.dtype)}, strict=False, assign=True
        )

    def finished(self) -> Any:
        """The model, all of it real."""
        self._model.tie_weights()
        missing = [name for name, t in self._model.state_dict().items() if t.is_meta]
        if missing:
            raise ValueError(f"{self._files.folder} needs a tensor for {missing[0]}, got none")
        return self._model.to(self._device).eval()
