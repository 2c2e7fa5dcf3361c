"""An NVFP4 checkpoint on disk, read layer by layer into checked tensors for the ops."""

from collections import defaultdict
from collections.abc import Sequence
from functools import cached_property
from pathlib import Path

import torch
from torch import Tensor

from nvfp4.checkpoints.files import FLOATS, TensorFiles
from nvfp4.checkpoints.names import DOWN, EXPERT_PARTS, GATE, UP, WEIGHT, expert_of, in_order
from nvfp4.checkpoints.parsing import read_scheme
from nvfp4.checkpoints.schemes import (
    BIAS,
    CONFIG_FILE,
    MODELOPT,
    PRE_QUANT_SCALE,
    QUANT_CONFIG_FILE,
    Format,
    Group,
    Scheme,
    is_cache_scale,
)
from nvfp4.checkpoints.stacks import ExpertFiles, Stacks
from nvfp4.checkpoints.storage import NVFP4, FloatTensors
from nvfp4.layers import Linear, MoE, SwiGLUMLP
from nvfp4.spec.format import BLOCK, LINEAR, W4A4, W4A16
from nvfp4.spec.glu import GATED, SILU
from nvfp4.spec.scale_rules import AMAX_OVER_SIX, SCALE_RULES
from nvfp4.tensors import QuantizedTensor, concatenate, stack_experts


class Checkpoint:
    """A folder with a ModelOpt or compressed-tensors NVFP4 checkpoint.

    Opening it reads the configuration and the files' headers. A tensor is read when it is needed,
    through a memory map. Layers go by their names in the files, and experts that are in one tensor
    of all by the names that separate ones would have. Where a tensor is wrong, a ValueError names
    it and its file.

    The checkpoint's scheme says what happens to activations. In W4A4 they are quantized, with a
    scale per token where the layer has no input scale. In W4A16 only weights are quantized, and
    activations stay in 16 bits. `activation` overrides the scheme for all layers, with "nvfp4"
    (W4A4) or "bf16" (W4A16). `scale_rule` is for the layers that quantize activations, as
    nvfp4.quantize takes it.
    """

    def __init__(
        self,
        folder: Path | str,
        activation: str | None = None,
        scale_rule: str = AMAX_OVER_SIX,
    ) -> None:
        if activation not in (None, W4A4, W4A16):
            need = f"{W4A4!r}, {W4A16!r} or None"
            raise ValueError(f"Checkpoint: activation needs {need}, got {activation!r}")
        if scale_rule not in SCALE_RULES:
            need = " or ".join(map(repr, SCALE_RULES))
            raise ValueError(f"Checkpoint: scale_rule needs {need}, got {scale_rule!r}")
        self.folder = Path(folder)
        self.scale_rule = scale_rule
        self.activation = activation
        if not self.folder.is_dir():
            raise ValueError(f"{self.folder} needs to be a checkpoint's folder, got none")
        scheme = read_scheme(self.folder)
        if scheme is None:
            need = f"a quantization_config in {CONFIG_FILE}, or {QUANT_CONFIG_FILE}"
            raise ValueError(f"{self.folder} needs {need}, got neither")
        self.scheme: Scheme = scheme
        files = ExpertFiles(self.folder, scheme.format)
        self.files: TensorFiles = files
        self.stacks = files.stacks

    @property
    def format(self) -> Format:
        return self.scheme.format

    @cached_property
    def modules(self) -> tuple[str, ...]:
        """The names in the files of the quantized linear layers, with those of each expert.

        A layer counts if it has one of the tensors that only quantized layers have.
        """
        found = set()
        for name in self.files.names:
            module, _, leaf = name.rpartition(".")
            if module not in self.others and self._is_quantized(name, leaf):
                found.add(module)
        return tuple(sorted(found, key=in_order))

    @cached_property
    def floats(self) -> FloatTensors:
        """All tensors as they are in floats; weights of any quantized form are dequantized."""
        return FloatTensors(self.files)

    @cached_property
    def others(self) -> dict[str, str]:
        """The layers quantized to another form than NVFP4, such as "FP8", by their names."""
        return {
            name.removesuffix(WEIGHT): stored.form
            for name, stored in self.floats.stored.items()
            if stored.form != NVFP4
        }

    @cached_property
    def _leaves(self) -> dict[str, list[str]]:
        """The names of each quantized layer's tensors, without the layer's own name."""
        found: dict[str, list[str]] = {module: [] for module in self.modules}
        for name in self.files.names:
            module, _, leaf = name.rpartition(".")
            if module in found:
                found[module].append(leaf)
        return found

    def _is_quantized(self, name: str, leaf: str) -> bool:
        format = self.format
        if leaf == format.data == "weight":  # which other layers have too
            return self.files.dtype(name) == "U8"
        return leaf in (format.data, format.scales, format.global_scale)

    @cached_property
    def experts(self) -> dict[str, int]:
        """The number of experts in each module of quantized experts."""
        found: dict[str, set[int]] = defaultdict(set)
        for module in self.modules:
            if expert := expert_of(module):
                found[expert.experts].add(expert.expert)
        return {name: max(indices) + 1 for name, indices in found.items()}

    def is_quantized(self, module: str) -> bool:
        return module in self._leaves

    def group_of(self, module: str) -> Group | None:
        """The scheme's group of a quantized layer; None if the configuration ignores it.

        Where experts are in one tensor, the configuration may have its name or theirs.
        """
        group = self.scheme.group_of(module)
        stack = self.stacks.of.get(module)
        return self.scheme.group_of(stack) if group is None and stack else group

    def activation_of(self, module: str) -> str:
        """The activations that a quantized layer multiplies: "nvfp4" (W4A4) or "bf16" (W4A16)."""
        if self.activation is not None:
            return self.activation
        group = self.group_of(module)
        if group is not None:
            return group.activation
        # The layer is quantized, although the configuration ignores it: treat it as the others.
        others = {each.activation for each in self.scheme.groups}
        return W4A16 if others == {W4A16} else W4A4

    # tensors

    def weight(self, module: str) -> QuantizedTensor:
        """Read a layer's weight [N, K].

        It has data uint8 [N, K/2], linear scales float8_e4m3fn [N, K/16] and a global scale float32
        []. A stored divisor S becomes the float32 nearest to 1/S.

        Raises:
            ValueError: a tensor is missing or has another dtype or shape; a scale byte is NaN or
                negative; the global scale is not finite and positive; the layer has a tensor that
                its format does not know.
        """
        files, format = self.files, self.format
        self._refuse_unknown(module)
        data = files.checked(f"{module}.{format.data}", ["U8"], dim=2)
        n, k = data.shape[0], 2 * data.shape[1]
        if k == 0 or k % BLOCK:
            need = f"a shape [N, K/2] with K a positive multiple of {BLOCK}"
            where = files.where(f"{module}.{format.data}")
            raise ValueError(f"{where} needs {need}, got {list(data.shape)}")
        name = self._name(module, format.scales)
        scales = files.checked(name, ["F8_E4M3"], dim=2)
        if scales.shape != (n, k // BLOCK):
            need = f"shape {[n, k // BLOCK]}"
            raise ValueError(f"{files.where(name)} needs {need}, got {list(scales.shape)}")
        p = self._global_scale(f"{module}.{format.global_scale}")
        try:
            return QuantizedTensor(data, scales, p, LINEAR).validate()
        except ValueError as error:
            raise ValueError(f"{files.where(name)}: {error}") from error

    def input_global_scale(self, module: str) -> Tensor | None:
        """Read the calibrated scale of a layer's input, float32 []; None if it is dynamic."""
        name = self._name(module, self.format.input_global_scale)
        if name not in self.files or self.is_dead(module):
            return None
        return self._global_scale(name)

    def is_dead(self, module: str) -> bool:
        """Whether no token went to an expert's layer in calibration: its input scale is 0 or Inf.

        Makers store the reciprocal of the other, so that both mean the same.
        """
        name = self._name(module, self.format.input_global_scale)
        if expert_of(module) is None or name not in self.files:
            return False
        stored = self.files.read(name)
        return stored.numel() == 1 and stored.item() in (0.0, float("inf"))

    def pre_quant_scale(self, module: str) -> Tensor | None:
        """Read AWQ's factors [K] of a layer's input before it is quantized, or None."""
        return self._vector(module, PRE_QUANT_SCALE)

    def bias(self, module: str) -> Tensor | None:
        """Read a layer's bias [N], or None."""
        return self._vector(module, BIAS)

    def _name(self, module: str, leaf: str) -> str:
        """The name in the files of a layer's tensor, which may be another than the format's."""
        names = [f"{module}.{each}" for each in self.format.stored_as(leaf)]
        return next((name for name in names if name in self.files), names[0])

    def _refuse_unknown(self, module: str) -> None:
        """Raise for a tensor that is not read here: it would change what the layer computes."""
        known = self.format.leaves
        for leaf in self._leaves.get(module, ()):
            if leaf not in known and not is_cache_scale(leaf):
                where = self.files.where(f"{module}.{leaf}")
                need = f"one of the tensors of a {self.format.name} layer ({', '.join(known)})"
                raise ValueError(f"{where} needs to be {need}, got {leaf}")

    def _global_scale(self, name: str) -> Tensor:
        dim = len(self.files.shape(name)) if name in self.files else 0
        stored = self.files.checked(name, ["F32"], dim)
        if stored.numel() != 1:
            where = self.files.where(name)
            raise ValueError(f"{where} needs one value, got shape {list(stored.shape)}")
        p = self.format.from_stored(stored.reshape(()))
        for value in (stored.item(), p.item()):
            if not 0 < value < float("inf"):
                where = self.files.where(name)
                raise ValueError(f"{where} needs a finite positive value, got {value}")
        return p

    def _vector(self, module: str, leaf: str) -> Tensor | None:
        """Read a layer's bias [N], or the factors [K] of its input."""
        files, name = self.files, f"{module}.{leaf}"
        if name not in files:
            return None
        n, half_k = files.checked(f"{module}.{self.format.data}", ["U8"], dim=2).shape
        length = n if leaf == BIAS else 2 * half_k
        found = files.checked(name, FLOATS, dim=1)
        if found.shape != (length,):
            raise ValueError(f"{files.where(name)} needs shape {[length]}, got {list(found.shape)}")
        if not found.isfinite().all():
            raise ValueError(f"{files.where(name)} needs finite values, got NaN or Inf")
        return found

    # layers

    def linear(self, *modules: str, backend: str = "") -> Linear:
        """Make the layer of that name; several names (q, k, v) make one layer of them all.

        The parts take one input, and their outputs stand side by side. Each part keeps its own
        weight scale. The input scale is the largest of theirs, so that it covers every part. A
        W4A16 layer has none.
        """
        activation = self._one_activation(modules)
        pre_quant_scales = [self.pre_quant_scale(module) for module in modules]
        pre_quant_scale = pre_quant_scales[0]
        if not all(_equal(pre_quant_scale, other) for other in pre_quant_scales):
            raise ValueError(
                f"{self.folder}: {', '.join(modules)} need one {PRE_QUANT_SCALE} to be fused"
            )
        weights = [self.weight(module) for module in modules]
        return Linear(
            weights[0] if len(weights) == 1 else concatenate(weights),
            self._bias_of(modules),
            self._largest_input_scale(modules) if activation == W4A4 else None,
            pre_quant_scale,
            scale_rule=self.scale_rule if activation == W4A4 else AMAX_OVER_SIX,
            activation=activation,
            backend=backend,
        )

    def swiglu_mlp(
        self,
        module: str,
        swiglu_limit: float | None = None,
        activation: str = SILU,
        backend: str = "",
    ) -> SwiGLUMLP:
        """Make the MLP of that name from gate_proj, up_proj and down_proj (or w1, w3, w2).

        With relu2 there is no gate_proj. It runs W4A4 or W4A16, as the scheme says.
        """
        first, down = self._layers(module, activation)
        activation_format = self._one_activation([*first, down])
        quantizes = activation_format == W4A4
        return SwiGLUMLP(
            concatenate([self.weight(each) for each in first]),
            self.weight(down),
            self._largest_input_scale(first) if quantizes else None,
            self.input_global_scale(down) if quantizes else None,
            self._bias_of(first),
            self.bias(down),
            swiglu_limit=swiglu_limit,
            scale_rule=self.scale_rule if activation_format == W4A4 else AMAX_OVER_SIX,
            activation_format=activation_format,
            activation=activation,
            backend=backend,
        )

    def moe(
        self,
        module: str,
        first: int = 0,
        count: int | None = None,
        swiglu_limit: float | None = None,
        activation: str = SILU,
        backend: str = "",
    ) -> MoE:
        """Make the mixture of the experts `module`.0, `module`.1, …: all, or `count` from `first`.

        One rank of several holds such a part. gate_proj (w1) gives the first half of w13's rows,
        up_proj (w3) the second, and down_proj (w2) is w2. With relu2 there is no gate_proj. The
        layers' biases, where the experts have some, become w13_bias and w2_bias. The input scale
        is the largest of all experts', and each expert keeps its own scale of the intermediate.
        It runs W4A4 or W4A16, as the scheme says; W4A16 has no such scales.
        """
        total = self.experts.get(module, 0)
        count = total - first if count is None else count
        if not 0 <= first < first + count <= total:
            need = f"experts {first} to {first + count - 1} of {module}"
            raise ValueError(f"{self.folder} needs {need}, got {total}")
        here = [self._layers(f"{module}.{e}", activation) for e in range(first, first + count)]
        inputs, downs = [each for part, _ in here for each in part], [down for _, down in here]
        activation_format = self._one_activation([*inputs, *downs])
        w13 = [concatenate([self.weight(each) for each in part]) for part, _ in here]
        w2 = [self.weight(down) for down in downs]
        quantizes = activation_format == W4A4
        w13_bias, w2_bias = self._bias_of(inputs), self._bias_of(downs)
        return MoE(
            stack_experts(w13),
            stack_experts(w2),
            self._largest_input_scale(inputs) if quantizes else None,
            self._h_global_scale(downs) if quantizes else None,
            None if w13_bias is None else w13_bias.unflatten(0, (count, -1)),
            None if w2_bias is None else w2_bias.unflatten(0, (count, -1)),
            expert_offset=first,
            swiglu_limit=swiglu_limit,
            scale_rule=self.scale_rule if quantizes else AMAX_OVER_SIX,
            activation_format=activation_format,
            activation=activation,
            backend=backend,
        )

    def _one_activation(self, modules: Sequence[str]) -> str:
        """The activations that layers multiply that run as one, W4A4 or W4A16."""
        activations = {self.activation_of(module) for module in modules}
        if len(activations) != 1:
            need = f"one activation to be fused, got {' and '.join(sorted(activations))}"
            raise ValueError(f"{self.folder}: {_some(modules)} need {need}")
        return activations.pop()

    def _bias_of(self, modules: Sequence[str]) -> Tensor | None:
        """The biases of layers that run as one, one after the other; all have one, or none."""
        biases = [bias for module in modules if (bias := self.bias(module)) is not None]
        if len(biases) not in (0, len(modules)):
            raise ValueError(f"{self.folder}: {_some(modules)} need a bias each, or none")
        return torch.cat(biases) if biases else None

    def _layers(self, module: str, activation: str) -> tuple[list[str], str]:
        """The names of an MLP's layers: [gate, up], or [up] where there is no gate, and down."""
        first = [GATE, UP] if activation in GATED else [UP]
        found = {}
        for leaf, part in EXPERT_PARTS.items():
            if self.is_quantized(f"{module}.{leaf}"):
                found[part] = f"{module}.{leaf}"
        if missing := [part for part in (*first, DOWN) if part not in found]:
            raise ValueError(f"{self.folder} needs {module}.{missing[0]} quantized, got none such")
        for name in found.values():
            factors = self.pre_quant_scale(name)
            if factors is not None and (factors != 1).any():
                need = f"no {PRE_QUANT_SCALE} (its layers apart, by linear, can have one)"
                raise ValueError(f"{name} needs {need} for a gated MLP in one, got one")
        return [found[part] for part in first], found[DOWN]

    def _largest_input_scale(self, modules: Sequence[str]) -> Tensor | None:
        """The largest input scale of these layers that are not dead; None if one has none."""
        scales = [self.input_global_scale(module) for module in modules if not self.is_dead(module)]
        known = [scale for scale in scales if scale is not None]
        return torch.stack(known).amax() if known and len(known) == len(scales) else None

    def _h_global_scale(self, modules: Sequence[str]) -> Tensor | None:
        """The input scale of each expert's down; dead ones get the largest. May be None."""
        largest = self._largest_input_scale(modules)
        if largest is None:
            return None
        known = [self.input_global_scale(module) for module in modules]
        return torch.stack([largest if scale is None else scale for scale in known])

    def unquantized(self, module: str) -> Tensor:
        """Read a weight that was left in floats: a layer's, an embedding's or a norm's."""
        name = module + WEIGHT
        dim = len(self.files.shape(name)) if name in self.files else 0
        return self.files.checked(name, FLOATS, dim)


class FloatFolder(Checkpoint):
    """A folder whose weights are all read as floats, whatever their form is."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.activation = None
        self.scheme = Scheme(MODELOPT, groups=())
        self.files = TensorFiles(folder)
        self.stacks = Stacks()

    @cached_property
    def modules(self) -> tuple[str, ...]:
        return ()


def _some(modules: Sequence[str]) -> str:
    """Name up to four layers, and count the others."""
    more = f" and {len(modules) - 4} more" if len(modules) > 4 else ""
    return ", ".join(modules[:4]) + more


def _equal(a: Tensor | None, b: Tensor | None) -> bool:
    if a is None or b is None:
        return a is b
    return torch.equal(a, b)
