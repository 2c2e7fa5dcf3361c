"""The two ways to store NVFP4, each said once: the names of a layer's tensors, the direction of
its global scales, and the configuration that says which layers are quantized.

                     modelopt          compressed-tensors
    data             weight            weight_packed         uint8 [N, K/2]
    block scales     weight_scale      weight_scale          float8_e4m3fn [N, K/16], linear
    global scale     weight_scale_2    weight_global_scale   float32 [] or [1]
    of the input     input_scale       input_global_scale    float32 [] or [1], may be missing
                     (p, multiplied)   (S = 1 / p, divides)

ModelOpt writes hf_quant_config.json and, since its version 0.39, config.json's quantization_config;
compressed-tensors ("nvfp4-pack-quantized") the latter alone. AWQ adds pre_quant_scale [K], which
the layer's input is multiplied by.
"""

import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from nvfp4.calls.linear import W4A4, W4A16
from nvfp4.checkpoints.names import matches
from nvfp4.spec.format import BLOCK
from nvfp4.version import VERSION

CONFIG_FILE = "config.json"
QUANT_CONFIG_FILE = "hf_quant_config.json"
PRE_QUANT_SCALE = "pre_quant_scale"
BIAS = "bias"
CACHE_SCALES = ("k_scale", "v_scale")
"""Scales of a quantized key-value cache. Nothing here quantizes the cache, so they are not used."""


@dataclass(frozen=True)
class Format:
    """How a quantized layer is stored: its tensors' names, to be put after "<module>.", whether its
    global scales are divisors, and the shape they are written in (one value in any shape is read).
    """

    name: str
    data: str
    scales: str
    global_scale: str
    input_global_scale: str
    divides: bool
    scale_shape: tuple[int, ...]

    @property
    def leaves(self) -> tuple[str, ...]:
        """The names of all tensors that a quantized layer may have."""
        own = self.data, self.scales, self.global_scale, self.input_global_scale
        return (*own, PRE_QUANT_SCALE, BIAS, *CACHE_SCALES)

    def to_stored(self, p: Tensor) -> Tensor:
        """A decode multiplier, float32, as the file has it."""
        return torch.reciprocal(p) if self.divides else p

    def from_stored(self, scale: Tensor) -> Tensor:
        """The decode multiplier of a file's global scale. Of a divisor the float32 nearest to 1/S:
        one rounding, 6e-8 at most.
        """
        return torch.reciprocal(scale) if self.divides else scale

    def storable(self, p: Tensor) -> Tensor:
        """The multiplier next to p that this format holds exactly: what is quantized with it reads
        back bit for bit. (1/(1/p) may differ from p in the last bit; once more changes nothing.)
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
"""W4A4: activations are quantized too."""
WEIGHTS_ONLY_ALGORITHM = "W4A16_NVFP4"
ALGORITHMS = (*QUANTIZED_ALGORITHMS, WEIGHTS_ONLY_ALGORITHM)
"""ModelOpt's quant_algo values that store NVFP4 weights and no other kind."""

PACK_FORMAT = "nvfp4-pack-quantized"
"""compressed-tensors' name for it."""

EVERY_LINEAR = "Linear"
"""The target that is a class of modules and not a module's name."""


@dataclass(frozen=True)
class Group:
    """Layers quantized alike.

    targets: their names or patterns.
    calibrated: whether their inputs' global scales are in the checkpoint.
    activation: "nvfp4" (W4A4: inputs are quantized, each token by itself unless calibrated), or
        "bf16" (W4A16: the weights alone are quantized).
    """

    targets: tuple[str, ...] = (EVERY_LINEAR,)
    calibrated: bool = True
    activation: str = W4A4

    def input_numbers(self, numbers: Mapping[str, Any], static: Any) -> dict[str, Any] | None:
        """A configuration's input_activations; `static` is its "dynamic" for calibrated inputs."""
        if self.activation == W4A16:
            return None
        return {**numbers, "dynamic": static if self.calibrated else True}


@dataclass(frozen=True)
class Scheme:
    """What a checkpoint's configuration says: the format, the groups of linear layers that are
    quantized, and those that are not although a group would have them.
    """

    format: Format
    groups: tuple[Group, ...] = (Group(),)
    ignore: tuple[str, ...] = ()

    def group_of(self, module: str) -> Group | None:
        """The group of a linear layer by its name in the checkpoint; None: it is not quantized."""
        if any(self._ignores(pattern, module) for pattern in self.ignore):
            return None
        for group in self.groups:
            if any(t == EVERY_LINEAR or _matches(t, module) for t in group.targets):
                return group
        return None

    def quantizes(self, module: str) -> bool:
        """Whether a linear layer, named as in the checkpoint, is quantized."""
        return self.group_of(module) is not None

    def _ignores(self, pattern: str, module: str) -> bool:
        return (_matches if self.format is COMPRESSED_TENSORS else matches)(pattern, module)

    def config(self) -> dict[str, Any]:
        """config.json's quantization_config."""
        if self.format is MODELOPT:
            return self._modelopt_config()
        groups = {
            f"group_{index}": {
                "format": PACK_FORMAT,
                "targets": list(group.targets),
                "weights": _tensor_group(),
                # "local": block scales as the layer runs, the global scale from the file.
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
        """ModelOpt's quant_algo."""
        quantized = any(group.activation == W4A4 for group in self.groups)
        return QUANTIZED_ALGORITHMS[0] if quantized else WEIGHTS_ONLY_ALGORITHM

    def hf_quant_config(self) -> dict[str, Any] | None:
        """What hf_quant_config.json holds, in the formats that have one."""
        if self.format is not MODELOPT:
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
    """compressed-tensors' arguments of 4-bit floats with a scale a block and one a tensor."""
    return {
        "num_bits": 4,
        "type": "float",
        "strategy": "tensor_group",
        "symmetric": True,
        "group_size": BLOCK,
        "dynamic": False,
        "scale_dtype": "torch.float8_e4m3fn",
    }


def _matches(pattern: str, module: str) -> bool:
    """compressed-tensors' patterns: a whole name, or a regular expression of its beginning."""
    if pattern.startswith("re:"):
        return re.match(pattern.removeprefix("re:"), module) is not None
    return pattern == module
