"""The plan of a conversion: which layers are quantized, and which stay in floats."""

import re
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from functools import cached_property
from pathlib import Path
from statistics import median
from typing import Any, NamedTuple

import torch

from nvfp4.checkpoints.files import TensorSpec
from nvfp4.checkpoints.names import (
    WEIGHT,
    expert_of,
    is_router,
    is_selector,
    matches,
    siblings_of,
)
from nvfp4.checkpoints.schemes import FORMATS, MODELOPT, Group, Scheme
from nvfp4.checkpoints.source import Source
from nvfp4.quantization import FOUR_OVER_SIX, GPTQ, MSE, RTN
from nvfp4.quantization.errors import LayerError
from nvfp4.spec.format import BLOCK, DATA_DTYPE, FLOAT_DTYPES, SCALE_DTYPE, W4A4, W4A16

HEAD = "lm_head"

MOST = 0.5
"""A warning is given where more than this share of a model's bytes stays in floats."""


class Method(NamedTuple):
    """A method of quantizing the weights: with AWQ's factors or not, and how they are rounded."""

    factors: bool
    rounding: str

    @property
    def needs_text(self) -> bool:
        return self.factors or self.rounding == GPTQ


METHODS = {
    **{rounding: Method(False, rounding) for rounding in (RTN, FOUR_OVER_SIX, MSE, GPTQ)},
    "awq": Method(True, MSE),
    "awq+gptq": Method(True, GPTQ),
}
"""The methods by name; quantization/ describes them."""


@dataclass(frozen=True)
class Options:
    """The options of a conversion.

    format: "modelopt" or "compressed-tensors".
    exclude: layers to leave in floats, as wildcards of their names ("*.o_proj") or as parts of
        names between dots ("self_attn").
    include: layers to quantize that stay in floats otherwise, by such patterns: the head. A head
        that shares its weight with the embedding gets one of its own, and the embedding keeps its.
    text: the text for calibration, or None.
    activation: "nvfp4" (W4A4), where inputs are quantized, with scales from the text; "bf16"
        (W4A16), where only the weights are. None is W4A4 with a text and W4A16 without.
    method: how weights are quantized, one of METHODS. Those with inputs need a text.
    max_tokens: the most tokens of the text that are used.
    separate_scales: give every layer its own global scale, also those that engines fuse (q, k, v;
        gate, up). Engines that take one scale for all of them then compute wrong results. The gain
        is small, because block scales have an exponent of their own.
    shard_size: the largest size of a file, such as "5GB".
    """

    format: str = MODELOPT.name
    exclude: tuple[str, ...] = ()
    text: Path | None = None
    activation: str | None = None
    method: str = RTN
    max_tokens: int = 4096
    separate_scales: bool = False
    shard_size: str = "5GB"
    include: tuple[str, ...] = ()


@dataclass(frozen=True)
class Summary:
    """A summary of what was written; left_in_floats leaves out embeddings and norms.

    median_errors: the medians over the layers of each number of LayerError that was measured.
    notes: the layers that were quantized in another way, and why.
    """

    format: str
    method: str
    quantized_layers: int
    quantizes_activations: bool
    calibrated: bool
    left_in_floats: tuple[str, ...]
    bytes_left_in_floats: int
    bytes_before: int
    bytes_after: int
    median_errors: dict[str, float]
    notes: tuple[str, ...]

    def as_dict(self) -> dict[str, Any]:
        return asdict(self)


class Plan:
    """The layers that are quantized, and the tensors that are written."""

    def __init__(self, source: Source, options: Options) -> None:
        if options.format not in FORMATS:
            need = " or ".join(map(repr, FORMATS))
            raise ValueError(f"--format needs {need}, got {options.format!r}")
        self.source = source
        self.format = FORMATS[options.format]
        if options.method not in METHODS:
            need = ", ".join(METHODS)
            raise ValueError(f"--method needs one of {need}, got {options.method!r}")
        self.method = METHODS[options.method]
        if self.method.needs_text and options.text is None:
            raise ValueError(f"--method {options.method} needs --calibrate TEXT, got none")
        if options.activation not in (None, W4A4, W4A16):
            raise ValueError(f"--activation needs {W4A4} or {W4A16}, got {options.activation!r}")
        self.activation = options.activation or (W4A16 if options.text is None else W4A4)
        self.quantizes_activations = self.activation == W4A4
        self.calibrated = self.quantizes_activations and options.text is not None
        self.separate_scales = options.separate_scales
        self._options = options
        self._exclude = options.exclude
        self.head = self._included_head(options.include)
        for pattern in options.exclude:
            if not any(matches(pattern, module) for module in self._linears):
                raise ValueError(f"--exclude needs a linear layer's name, got {pattern!r}")
        if not self.quantized:
            raise ValueError(f"SRC needs linear layers to quantize, got none in {source.path}")

    def _included_head(self, patterns: Sequence[str]) -> str:
        """The name in the checkpoint of the head that is to be quantized; "" if it is not."""
        head = self.source.skeleton.head
        for pattern in patterns:
            if not head or not matches(pattern, head):
                need = f"the name of the head ({head or 'which this model has not'})"
                raise ValueError(f"--include needs {need}, got {pattern!r}")
        if not patterns:
            return ""
        if head + WEIGHT not in self.source.tensors:
            self.source.untie(head)
        return head

    @cached_property
    def _linears(self) -> tuple[str, ...]:
        """The names in the checkpoint of the linear layers, routers included."""
        return tuple(
            module
            for name, spec in self.source.tensors.items()
            if (module := name.removesuffix(WEIGHT)) != name and len(spec.shape) == 2
            if is_router(module) or self.source.skeleton.is_linear(module)
        )

    @cached_property
    def quantized(self) -> frozenset[str]:
        """The linear layers to quantize; those that engines fuse are quantized together or not."""
        left = {self._whole(module) for module in self._linears if self._stays(module)}
        return frozenset(each for each in self._linears if self._whole(each) not in left)

    def _stays(self, module: str) -> bool:
        shape, dtype = self.source.tensors[module + WEIGHT]
        return (
            is_router(module)
            or is_selector(module)
            or module != self.head
            and (
                self.source.skeleton.is_head(module)
                or not self.source.skeleton.is_of_language_model(module)
            )
            or not self.source.skeleton.is_plain(module)
            or self.source.skeleton.is_kept_in_float32(module)
            or dtype not in FLOAT_DTYPES
            or shape[1] % BLOCK != 0
            or any(matches(pattern, module) for pattern in self._exclude)
        )

    def _whole(self, module: str) -> str:
        expert = expert_of(module)
        return expert.experts if expert else siblings_of(module)[0]

    @cached_property
    def scheme(self) -> Scheme:
        group = Group(calibrated=self.calibrated, activation=self.activation)
        head = [] if self.head in self.quantized else [HEAD]
        ignore = dict.fromkeys([*head, *sorted(self._ignored())])
        return Scheme(self.format, (group,), tuple(ignore))

    @cached_property
    def copied(self) -> dict[str, TensorSpec]:
        """The tensors that are not quantized, as they are published."""
        names = self.source.tensors
        left = (name for name in names if name.removesuffix(WEIGHT) not in self.quantized)
        return dict(map(self._published, left))

    def _published(self, name: str) -> tuple[str, TensorSpec]:
        """The tensor that is written for one that stays in floats.

        It is the one that makers publish, with all of a block's experts. The bias of an expert's
        layer that is quantized stands beside it, apart from the others'.
        """
        if _layer_of(name) in self.quantized:
            return name, self.source.tensors[name]
        return self.source.published(name)

    @cached_property
    def left(self) -> dict[str, int]:
        """The layers with matrices that stay in floats, and their bytes.

        Among them are experts and whatever transformers' model does not have. A parameter that is
        not the weight of a layer counts for its module.
        """
        found: Counter[str] = Counter()
        for name, spec in self.copied.items():
            module = _layer_of(name)
            matrix = len(spec.shape) > 1 and module not in self.quantized
            if matrix and self.source.skeleton.may_be_linear(module):
                found[module] += spec.nbytes
        return dict(found)

    def _ignored(self) -> set[str]:
        """The names in the ignore list, for the layers that stay in floats.

        None of them names a module with a quantized layer in it.
        """
        quantized = {parent for module in self.quantized for parent in _parents(module)}
        stacks = {name for name, spec in self.copied.items() if len(spec.shape) == 3}
        found: set[str] = set()
        for module in self.left:
            parent = module.rpartition(".")[0]
            if expert := expert_of(module):
                found.add(expert.experts)  # engines ask for it: all experts are one layer to them
                if self.format == MODELOPT:  # whose names mean what is below them too
                    continue
            elif module + WEIGHT in stacks and parent not in quantized:
                found.add(parent)  # likewise: the block of experts
            if module not in quantized:
                found.add(module)
        return found - {""}

    @property
    def mostly_left(self) -> str:
        """The warning for a model of which most stays in floats; "" otherwise."""
        left, total = sum(self.left.values()), self._bytes_before
        if left <= MOST * total:
            return ""
        kinds: Counter[str] = Counter()
        for module, nbytes in self.left.items():
            expert = expert_of(module)
            layer = expert.experts if expert else module
            kinds[re.sub(r"\.\d+(?=\.|$)", ".*", layer)] += nbytes
        ((largest, of_largest),) = kinds.most_common(1)
        return (
            f"{self.source.path}: {left / total:.0%} of the model's bytes stay in floats, "
            f"{of_largest / total:.0%} in {largest}. convert knows no way to quantize them, or was "
            f"told to leave them; the checkpoint's ignore list names them."
        )

    @cached_property
    def outputs(self) -> dict[str, TensorSpec]:
        """The shapes and dtypes of all tensors of the checkpoint."""
        found: dict[str, TensorSpec] = {}
        for name, spec in self.source.tensors.items():
            module = name.removesuffix(WEIGHT)
            if module not in self.quantized:
                whole, spec = self._published(name)
                found[whole] = spec
                continue
            (n, k), format = spec.shape, self.format
            found[f"{module}.{format.data}"] = TensorSpec((n, k // 2), DATA_DTYPE)
            found[f"{module}.{format.scales}"] = TensorSpec((n, k // BLOCK), SCALE_DTYPE)
            scalar = TensorSpec(format.scale_shape, torch.float32)
            found[f"{module}.{format.global_scale}"] = scalar
            if self.calibrated:
                found[f"{module}.{format.input_global_scale}"] = scalar
        return found

    def siblings(self, module: str) -> tuple[str, ...]:
        """The quantized layers that share a global scale with this one."""
        return tuple(each for each in siblings_of(module) if each in self.quantized)

    @property
    def in_blocks(self) -> frozenset[str]:
        """The layers to quantize but the head."""
        return self.quantized - {self.head}

    @property
    def _bytes_before(self) -> int:
        tensors = self.source.tensors
        return sum(spec.nbytes for name, spec in tensors.items() if name != self.source.untied)

    def summary(self, errors: Sequence[LayerError] = ()) -> Summary:
        return Summary(
            self.format.name,
            self._options.method,
            len(self.quantized),
            self.quantizes_activations,
            self.calibrated,
            self.scheme.ignore,
            sum(self.left.values()),
            self._bytes_before,
            sum(spec.nbytes for spec in self.outputs.values()),
            _medians(errors),
            tuple(f"{error.layer}: {error.note}" for error in errors if error.note),
        )


def _medians(errors: Sequence[LayerError]) -> dict[str, float]:
    columns = ("weight_rtn", "weight", "output_rtn", "output")
    values = {c: [v for e in errors if (v := getattr(e, c)) is not None] for c in columns}
    return {column: median(found) for column, found in values.items() if found}


def _layer_of(name: str) -> str:
    """The layer with this weight, or the module with this parameter."""
    return name.removesuffix(WEIGHT) if name.endswith(WEIGHT) else name.rpartition(".")[0]


def _parents(module: str) -> Iterator[str]:
    """Yield the modules around a module: a.b and a for a.b.c."""
    while module := module.rpartition(".")[0]:
        yield module
