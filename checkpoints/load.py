"""Loading of a transformers model whose NVFP4 layers are replaced by those of nvfp4.layers."""

import re
import warnings
from collections import Counter, defaultdict
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from nvfp4.checkpoints.checkpoint import Checkpoint, FloatFolder
from nvfp4.checkpoints.experts import (
    activation_of,
    is_activation_known,
    is_experts,
    is_sorted_by_caller,
    stacks_of,
)
from nvfp4.checkpoints.files import FLOATS
from nvfp4.checkpoints.names import WEIGHT, expert_of
from nvfp4.checkpoints.schemes import BIAS, PRE_QUANT_SCALE, is_cache_scale
from nvfp4.checkpoints.skeleton import Skeleton, is_plain_linear, without_quantization
from nvfp4.checkpoints.storage import FLOAT_DTYPE
from nvfp4.layers import MoE
from nvfp4.spec.scale_rules import AMAX_OVER_SIX


class Experts(nn.Module):
    """A block's experts with the signature that transformers calls.

    hidden_states [M, H], top_k_index and top_k_weights [M, top_k] give [M, H].
    """

    def __init__(self, moe: MoE) -> None:
        super().__init__()
        self.moe = moe

    def forward(self, hidden_states: Tensor, top_k_index: Tensor, top_k_weights: Tensor) -> Tensor:
        return self.moe(hidden_states, top_k_weights, top_k_index)


class SortedExperts(nn.Module):
    """A block's experts with the signature of Llama 4.

    x [E*T, H] has T tokens for each expert, zeros where the router did not choose it.
    """

    def __init__(self, moe: MoE) -> None:
        super().__init__()
        self.moe = moe

    def forward(self, hidden_states: Tensor) -> Tensor:
        experts = torch.arange(self.moe.experts, device=hidden_states.device)
        each = experts.repeat_interleave(hidden_states.shape[0] // self.moe.experts)[:, None]
        chosen = (hidden_states != 0).any(-1, keepdim=True)
        weights = torch.ones_like(each, dtype=torch.float32)
        return self.moe(hidden_states, weights, torch.where(chosen, each, -1))


Step = Callable[[str, int], Callable[[], None]]


def load_model(
    folder: Path | str,
    device: str = "cpu",
    dtype: torch.dtype = torch.bfloat16,
    step: Step = lambda title, total: lambda: None,
    scale_rule: str = AMAX_OVER_SIX,
    activation: str | None = None,
    backend: str = "",
) -> Any:
    """Load an NVFP4 checkpoint as a causal language model of transformers.

    NVFP4 layers become nvfp4.layers.Linear, each with its own scales, and experts nvfp4.layers.MoE.
    Weights of other quantized forms, such as FP8, are dequantized, and so is NVFP4 where the model
    has another kind of layer; a warning counts them. The rest is as transformers' from_pretrained
    loads it with this `dtype`. Tensors are read layer by layer. `step` opens a progress bar.

    scale_rule: how block scales of activations are chosen where they are quantized, as
        nvfp4.quantize takes it. It is no property of a checkpoint.
    activation: the form of activations in NVFP4 layers. None takes what the checkpoint says; after
        `convert` without calibration, that is W4A16. "nvfp4" (W4A4) quantizes them, with a scale
        per token unless the checkpoint has one. "bf16" (W4A16) leaves them in 16 bits.

    Raises:
        ValueError: a tensor is damaged or missing, or is not one of the model's.
    """
    from transformers import AutoConfig, GenerationConfig

    checkpoint = Checkpoint(folder, activation, scale_rule)
    config = without_quantization(AutoConfig.from_pretrained(folder))
    loader = Loader(checkpoint, Skeleton(config, dtype), device, backend)
    model = loader.loaded(step)
    if (checkpoint.folder / "generation_config.json").exists():
        model.generation_config = GenerationConfig.from_pretrained(folder)
    return model


def load_floats(folder: Path, device: str = "cpu") -> Any:
    """Load a model in bfloat16, whose weights are dequantized from whatever form they have."""
    from transformers import AutoConfig

    config = without_quantization(AutoConfig.from_pretrained(folder))
    loader = Loader(FloatFolder(folder), Skeleton(config), device, "")
    return loader.loaded(lambda title, total: lambda: None)


class Loader:
    """Loads a checkpoint's tensors, one by one, into a model of transformers without values."""

    def __init__(
        self, checkpoint: Checkpoint, skeleton: Skeleton, device: str, backend: str
    ) -> None:
        self._checkpoint = checkpoint
        self._files = checkpoint.files
        self._floats = checkpoint.floats
        self._skeleton = skeleton
        self._model = skeleton.model
        self._device = device
        self._backend = backend
        self._replaced: dict[str, str] = {}  # where in the model, by a layer's name in the file
        self._loaded: set[str] = set()  # the model's tensors
        self._apart = self._experts_apart()
        self._running: dict[str, bool] = {}  # what `_runs` found
        self._dequantized: Counter[str] = Counter()  # how many weights, by their form
        self._parts: dict[str, list[str]] = defaultdict(list)  # by the model's tensor they make
        for name in self._floats.names:
            target, pattern = skeleton.place(name)
            if pattern is not None and self._replaced_by(name) is None:
                self._parts[target].append(name)

    def loaded(self, step: Callable[[str, int], Callable[[], None]]) -> Any:
        """Load all tensors and return the model."""
        names = self._floats.names
        done = step(f"load {self._files.folder.name}", len(names))
        for name in names:
            self._load(name)
            done()
        return self._finished()

    def _load(self, name: str) -> None:
        """Put one of the checkpoint's tensors into the model.

        The first tensor of an NVFP4 layer loads the whole layer. Where several tensors make one of
        the model's, the first of them loads all.
        """
        replaced = self._replaced_by(name)
        if replaced is not None:
            self._replace(name, replaced)
        elif name in self._skeleton.parameters or not is_cache_scale(name.rpartition(".")[2]):
            self._assign(name)

    @property
    def not_in_floats(self) -> set[str]:
        """The paths in the model of layers that NVFP4 layers replace, or that are dequantized."""
        found = set()
        for name in self._floats.names:
            if self._replaced_by(name):
                found.add(self._skeleton.path(name.rpartition(".")[0]))
            elif name in self._floats.stored:
                found.add(self._skeleton.place(name).target.rpartition(".")[0])
        return found & self._skeleton.modules.keys()

    def _replaced_by(self, name: str) -> str | None:
        """The NVFP4 layer, or the module of experts, to which a tensor belongs."""
        module = name.rpartition(".")[0]
        expert = expert_of(module)
        if expert and expert.experts in self._checkpoint.experts:
            return expert.experts if self._runs(expert.experts, module) else None
        if self._checkpoint.is_quantized(module) and self._runs(module, module):
            return module
        return None

    def _runs(self, layer: str, module: str) -> bool:
        """Whether an NVFP4 layer, or a module of experts with `module` in it, can run in NVFP4.

        Otherwise its weights are dequantized. A layer that the model lacks counts as one that runs:
        it is passed over, or is an error.
        """
        if layer not in self._running:
            old = self._skeleton.modules.get(self._skeleton.path(module))
            self._running[layer] = (
                old is None
                or is_plain_linear(old)
                or (is_experts(old) and is_activation_known(old) and layer not in self._apart)
            )
        return self._running[layer]

    def _experts_apart(self) -> set[str]:
        """The modules of experts that MoE cannot hold: not all NVFP4, or with AWQ's factors."""
        found = set()
        for name in self._floats.names:
            module, _, leaf = name.rpartition(".")
            if leaf == "weight" and (expert := expert_of(module)):
                factors = f"{module}.{PRE_QUANT_SCALE}"
                awq = factors in self._files and not (self._files.read(factors) == 1).all()
                if awq or not self._checkpoint.is_quantized(module):
                    found.add(expert.experts)
        return found

    def _replace(self, name: str, module: str) -> None:
        if module in self._replaced:
            return
        self._replaced[module] = path = self._skeleton.path(name.rpartition(".")[0])
        old = self._skeleton.modules.get(path)
        if old is None and self._passed_over(path + WEIGHT):
            return
        layer = self._new(name, module, old)
        layer.to(self._device)
        self._model.set_submodule(path, layer)

    def _passed_over(self, target: str) -> bool:
        """Whether the model lacks the tensor and says that a checkpoint may have it."""
        patterns = self._model._keys_to_ignore_on_load_unexpected or ()
        return any(re.search(pattern, target) for pattern in patterns)

    def _new(self, name: str, module: str, old: nn.Module | None) -> nn.Module:
        """Make the NVFP4 layer that replaces one of the model's."""
        if module in self._checkpoint.experts and old is not None and is_experts(old):
            limit, activation = activation_of(old)
            moe = self._checkpoint.moe(
                module, swiglu_limit=limit, activation=activation, backend=self._backend
            )
            stacks = stacks_of(old)
            self._same(name, tuple(moe.packed()[0].shape), tuple(stacks.w13.shape))
            need, got = _biased(stacks.w13_bias, stacks.w2_bias), _biased(moe.w13_bias, moe.w2_bias)
            if need != got:
                where = f"{self._files.folder}: {module}"
                raise ValueError(f"{where} needs {need}, as the model's experts have, got {got}")
            return SortedExperts(moe) if is_sorted_by_caller(old) else Experts(moe)
        if isinstance(old, nn.Linear) and is_plain_linear(old):
            linear = self._checkpoint.linear(module, backend=self._backend)
            self._same(name, tuple(linear.packed().shape), (old.out_features, old.in_features))
            bias = f"{module}.{BIAS}"
            if old.bias is not None and linear.bias is None:
                raise ValueError(f"{self._files.folder} needs the tensor {bias}, got none")
            if old.bias is None and linear.bias is not None:
                where = self._files.where(bias)
                raise ValueError(f"{where} needs to be one of the model's, which has no bias there")
            return linear
        raise ValueError(f"{self._files.where(name)} needs to be of a linear layer of the model")

    def _same(self, name: str, got: tuple[int, ...], need: tuple[int, ...]) -> None:
        if got != need:
            where = self._floats.where(name)
            raise ValueError(
                f"{where} needs a layer {list(need)}, as the model has, got {list(got)}"
            )

    def _assign(self, name: str) -> None:
        """Load a tensor in floats, or several that make one of the model's."""
        target, pattern = self._skeleton.place(name)
        if target not in self._skeleton.parameters:
            if self._passed_over(target):
                return
            raise ValueError(f"{self._floats.where(name)} needs to be one of the model's, got none")
        if pattern is None:
            self._set(target, self._read(name, target), name)
        elif target in self._parts:
            parts = {part: self._read(part, target) for part in self._parts.pop(target)}
            for made, tensor in self._skeleton.made_of(target, parts).items():
                self._set(made, tensor, name)

    def _read(self, name: str, target: str) -> Tensor:
        """Read a tensor to the device, in the dtype of the model's tensor `target`."""
        like, tensor = self._skeleton.parameters[target], self._floats.read(name)
        if stored := self._floats.stored.get(name):
            reason = self._checkpoint.stacks.kept.get(name)
            form = f"{stored.form} experts in one tensor ({reason})" if reason else stored.form
            self._dequantized[form] += 1
        elif like.is_floating_point():
            self._files.checked(name, FLOATS, tensor.dim())
        return tensor.to(self._device, like.dtype)

    def _set(self, target: str, tensor: Tensor, name: str) -> None:
        self._same(name, tuple(tensor.shape), tuple(self._skeleton.parameters[target].shape))
        path, _, leaf = target.rpartition(".")
        owner = self._model.get_submodule(path)
        owner.load_state_dict({leaf: tensor}, strict=False, assign=True)
        self._loaded.add(target)

    def _finished(self) -> Any:
        """Return the model, of which no tensor is left on the meta device."""
        model, replaced = self._model, set(self._replaced.values())
        missing = {
            name
            for name in self._skeleton.parameters
            if name not in self._loaded and name.rpartition(".")[0] not in replaced
        }
        self._tie(missing, replaced)
        optional = model._keys_to_ignore_on_load_missing or ()
        for name, tensor in model.state_dict().items():
            needed = name in missing and not any(re.search(each, name) for each in optional)
            if tensor.is_meta or needed:
                raise ValueError(f"{self._files.folder} needs a tensor for {name}, got none")
        if self._dequantized:
            counts = ", ".join(f"{n} in {form}" for form, n in sorted(self._dequantized.items()))
            dtypes = dict.fromkeys(str(dtype)[6:] for dtype in (FLOAT_DTYPE, model.dtype))
            warnings.warn(
                f"{self._files.folder}: weights that this package does not run as they are stored "
                f"are dequantized to {', then to '.join(dtypes)}: {counts}",
                stacklevel=4,
            )
        return model.to(self._device).eval()

    def _tie(self, missing: set[str], replaced: set[str]) -> None:
        """Tie the tensors that the model ties, and remove them from the missing ones.

        They stay apart where the file has two that differ, or has one of them in NVFP4: then the
        head has its own weight, though the configuration ties it.
        """
        model = self._model
        for pair in list(model.all_tied_weights_keys.items()):
            if any(name.rpartition(".")[0] in replaced for name in pair):
                del model.all_tied_weights_keys[pair[0]]
        model.tie_weights(missing_keys=missing, recompute_mapping=False)
        head, embedding = model.get_output_embeddings(), model.get_input_embeddings()
        if getattr(head, "weight", None) is not getattr(embedding, "weight", None):
            model.config.tie_word_embeddings = False  # else a later tie_weights call would tie them


def _biased(w13_bias: Tensor | None, w2_bias: Tensor | None) -> str:
    """Say which layers of experts have a bias."""
    found = [("gate and up", w13_bias), ("down", w2_bias)]
    return f"biases of {' and '.join(n for n, b in found if b is not None) or 'no layer'}"
