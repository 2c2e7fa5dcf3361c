"""The two formats of NVFP4 checkpoints: tensor names, global scales, configuration.

                     modelopt          compressed-tensors
    data             weight            weight_packed         uint8 [N, K/2]
    block scales     weight_scale      weight_scale          float8_e4m3fn [N, K/16], linear
    global scale     weight_scale_2    weight_global_scale   float32 [] or [1]
    of the input     input_scale       input_global_scale    float32 [] or [1], may be missing
                     (p, multiplied)   (S = 1 / p, divides)

The configuration says which layers are quantized. It is the quantization_config in config.json,
which ModelOpt writes since version 0.39, beside hf_quant_config.json. In compressed-tensors the
format is called "nvfp4-pack-quantized". AWQ adds pre_quant_scale [K], by which the layer's input is
multiplied.
"""

import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import torch
from torch import Tensor

from nvfp4.checkpoints.names import Names
from nvfp4.spec.format import BLOCK, W4A4, W4A16
from nvfp4.version import VERSION

CONFIG_FILE = "config.json"
QUANT_CONFIG_FILE = "hf_quant_config.json"
PRE_QUANT_SCALE = "pre_quant_scale"
BIAS = "bias"

_CACHE_SCALE = re.compile(
    r"(?:[qkvp]|kv|prob)(?:_cache|_global)*_(?:scale|scale_inv|scale_2|zero_point)|output_scale"
)


def is_cache_scale(leaf: str) -> bool:
    """Whether a tensor of that name is a scale of attention in 8 or 4 bits.

    Such scales are not used: neither the key-value cache nor attention is quantized here.
    """
    return _CACHE_SCALE.fullmatch(leaf) is not None


@dataclass(frozen=True)
class Format:
    """A way to store a quantized layer.

    It has the tensors' names after "<module>.", whether global scales are divisors, and the shape
    in which these are written. One value in any shape is read.
    """

    name: str
    data: str
    scales: str
    global_scale: str
    input_global_scale: str
    divides: bool
    scale_shape: tuple[int, ...]
    other_names: tuple[tuple[str, str], ...] = ()
    """Names that some files have instead: pairs of our name and the other."""

    def stored_as(self, leaf: str) -> tuple[str, ...]:
        """The names in files of a tensor, given the one above."""
        return (leaf, *(other for ours, other in self.other_names if ours == leaf))

    @property
    def leaves(self) -> tuple[str, ...]:
        """The names of all tensors that a quantized layer may have, besides those of a cache."""
        own = self.data, self.scales, self.global_scale, self.input_global_scale
        return (*own, *(other for _, other in self.other_names), PRE_QUANT_SCALE, BIAS)

    def to_stored(self, p: Tensor) -> Tensor:
        """Convert a decode multiplier, float32, to what the file holds."""
        return torch.reciprocal(p) if self.divides else p

    def from_stored(self, scale: Tensor) -> Tensor:
        """Convert a file's global scale to a decode multiplier.

        A divisor S gives the float32 nearest to 1/S, with a relative error of at most 6e-8.
        """
        return torch.reciprocal(scale) if self.divides else scale

    def storable(self, p: Tensor) -> Tensor:
        """The multiplier nearest to p that this format holds exactly.

        A weight quantized with it reads back bit for bit. 1/(1/p) may differ from p in the last
        bit; inverting twice more changes nothing.
        """
        return self.from_stored(self.to_stored(p))


MODELOPT = Format(
    name="modelopt",
    data="weight",
    scales="weight_scale",
    global_scale="weight_scale_2",
    input_global_scale="input_scale",
    divides=False,
    scale_shape=(),
    other_names=(("weight_scale", "weight_scale_inv"), ("input_scale", "input_scale_2")),
)
COMPRESSED_TENSORS = Format(
    name="compressed-tensors",
    data="weight_packed",
    scales="weight_scale",
    global_scale="weight_global_scale",
    input_global_scale="input_global_scale",
    divides=True,
    scale_shape=(1,),
)
FORMATS = {format.name: format for format in (MODELOPT, COMPRESSED_TENSORS)}

QUANTIZED_ALGORITHMS = ("NVFP4", "NVFP4_AWQ")
"""The algorithms of W4A4, in which activations are quantized too."""
WEIGHTS_ONLY_ALGORITHM = "W4A16_NVFP4"
ALGORITHMS = (*QUANTIZED_ALGORITHMS, WEIGHTS_ONLY_ALGORITHM)
"""The values of ModelOpt's quant_algo for checkpoints whose weights are all NVFP4."""
MIXED_ALGORITHM = "MIXED_PRECISION"
"""The value of quant_algo where each layer of quantized_layers has its own."""

PACK_FORMAT = "nvfp4-pack-quantized"
"""The name of NVFP4 in compressed-tensors."""
MIXED_FORMAT = "mixed-precision"
"""The name in compressed-tensors of a checkpoint whose groups have formats of their own."""

EVERY_LINEAR = "Linear"
"""The target that is a class of modules and not the name of one."""


@dataclass(frozen=True)
class Group:
    """Layers that are quantized alike.

    targets: their names or patterns.
    calibrated: whether the checkpoint has the global scales of their inputs.
    activation: "nvfp4" for W4A4, where inputs are quantized, per token unless calibrated; "bf16"
        for W4A16, where only the weights are quantized.
    """

    targets: tuple[str, ...] = (EVERY_LINEAR,)
    calibrated: bool = True
    activation: str = W4A4

    def input_numbers(self, numbers: Mapping[str, Any], static: Any) -> dict[str, Any] | None:
        """The input_activations of a configuration; "dynamic" is `static` for calibrated inputs."""
        if self.activation == W4A16:
            return None
        return {**numbers, "dynamic": static if self.calibrated else True}


@dataclass(frozen=True)
class Scheme:
    """The content of a checkpoint's configuration: the format, and which layers are quantized.

    Layers of a group are quantized to NVFP4 unless they are ignored. `others` are the targets of a
    mixed checkpoint that are quantized to another format, such as FP8; `config` has no such.
    """

    format: Format
    groups: tuple[Group, ...] = (Group(),)
    ignore: tuple[str, ...] = ()
    others: tuple[str, ...] = ()

    def group_of(self, module: str) -> Group | None:
        """The group of a linear layer, by its name in the checkpoint; None if it is not NVFP4."""
        found = self._found(module)
        return found if isinstance(found, Group) else None

    def quantizes(self, module: str) -> bool:
        """Whether a linear layer, named as in the checkpoint, is quantized to NVFP4."""
        return self.group_of(module) is not None

    def is_other(self, module: str) -> bool:
        """Whether a linear layer is quantized to another format than NVFP4."""
        return self._found(module) is False

    def _found(self, module: str) -> Group | bool | None:
        """The group of a layer; False for another format than NVFP4, None for floats.

        A target that names a layer comes before the class of all linear layers.
        """
        if module in self._ignored:
            return None
        for names, group in self._targets:
            if module in names:
                return group
        return next((group for targets, group in self._kinds() if EVERY_LINEAR in targets), None)

    def _kinds(self) -> Iterator[tuple[tuple[str, ...], Group | bool]]:
        yield from ((group.targets, group) for group in self.groups)
        yield self.others, False

    @cached_property
    def _targets(self) -> list[tuple[Names, Group | bool]]:
        return [(self._names(targets), group) for targets, group in self._kinds()]

    @cached_property
    def _ignored(self) -> Names:
        return self._names(self.ignore)

    def _names(self, patterns: tuple[str, ...]) -> Names:
        return Names(patterns, in_parts=self.format == MODELOPT)

    def config(self) -> dict[str, Any]:
        """The quantization_config of config.json."""
        if self.format == MODELOPT:
            return self._modelopt_config()
        groups = {
            f"group_{index}": {
                "format": PACK_FORMAT,
                "targets": list(group.targets),
                "weights": _tensor_group(),
                # "local" means: block scales are computed at each call, the global scale is stored.
                "input_activations": group.input_numbers(_tensor_group(), "local"),
                "output_activations": None,
            }
            for index, group in enumerate(self.groups)
        }
        return {
            "quant_method": COMPRESSED_TENSORS.name,
            "format": PACK_FORMAT,
            "quantization_status": "compressed",
            "config_groups": groups,
            "ignore": list(self.ignore),
            "kv_cache_scheme": None,
        }

    def _modelopt_config(self) -> dict[str, Any]:
        numbers = {"num_bits": 4, "type": "float", "group_size": BLOCK, "dynamic": False}
        groups = {
            f"group_{index}": {
                "targets": list(group.targets),
                "weights": numbers,
                "input_activations": group.input_numbers(numbers, static=False),
            }
            for index, group in enumerate(self.groups)
        }
        return {
            "quant_method": MODELOPT.name,
            "quant_algo": self.algorithm,
            "config_groups": groups,
            "ignore": list(self.ignore),
            "producer": _producer(),
        }

    @property
    def algorithm(self) -> str:
        """The value of quant_algo in ModelOpt."""
        quantized = any(group.activation == W4A4 for group in self.groups)
        return QUANTIZED_ALGORITHMS[0] if quantized else WEIGHTS_ONLY_ALGORITHM

    def hf_quant_config(self) -> dict[str, Any] | None:
        """The content of hf_quant_config.json; None in a format without that file."""
        if self.format != MODELOPT:
            return None
        return {
            "producer": _producer(),
            "quantization": {
                "quant_algo": self.algorithm,
                "kv_cache_quant_algo": None,
                "group_size": BLOCK,
                "exclude_modules": list(self.ignore),
            },
        }


def _producer() -> dict[str, str]:
    return {"name": "nvfp4", "version": VERSION}


def _tensor_group() -> dict[str, Any]:
    """The arguments in compressed-tensors of 4-bit floats with block scales and a global scale."""
    return {
        "num_bits": 4,
        "type": "float",
        "strategy": "tensor_group",
        "symmetric": True,
        "group_size": BLOCK,
        "dynamic": False,
        "scale_dtype": "torch.float8_e4m3fn",
    }
