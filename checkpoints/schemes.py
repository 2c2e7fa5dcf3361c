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

import json
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from nvfp4.checkpoints.names import matches
from nvfp4.spec.format import BLOCK
from nvfp4.version import VERSION

CONFIG_FILE = "config.json"
QUANT_CONFIG_FILE = "hf_quant_config.json"
PRE_QUANT_SCALE = "pre_quant_scale"


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

CALIBRATED_ALGORITHMS = ("NVFP4", "NVFP4_AWQ")
WEIGHTS_ONLY_ALGORITHM = "W4A16_NVFP4"
ALGORITHMS = (*CALIBRATED_ALGORITHMS, WEIGHTS_ONLY_ALGORITHM)
"""ModelOpt's quant_algo values that store NVFP4 weights and no other kind."""

PACK_FORMAT = "nvfp4-pack-quantized"
"""compressed-tensors' name for it."""

EVERY_LINEAR = "Linear"
"""The target that is a class of modules and not a module's name."""


@dataclass(frozen=True)
class Group:
    """Layers quantized alike: their names or patterns, and whether their inputs' global scales are
    in the checkpoint (calibrated) or to be found per token.
    """

    targets: tuple[str, ...] = (EVERY_LINEAR,)
    calibrated: bool = True


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
                "weights": _tensor_group(dynamic=False),
                # "local": block scales as the layer runs, the global scale from the file.
                "input_activations": _tensor_group(dynamic="local") if group.calibrated else None,
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
                "input_activations": numbers if group.calibrated else None,
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
        """ModelOpt's quant_algo: without calibrated inputs the weights alone are in 4 bits, as far
        as the file can say.
        """
        calibrated = any(group.calibrated for group in self.groups)
        return CALIBRATED_ALGORITHMS[0] if calibrated else WEIGHTS_ONLY_ALGORITHM

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


def _tensor_group(dynamic: bool | str) -> dict[str, Any]:
    """compressed-tensors' arguments of 4-bit floats with a scale a block and one a tensor."""
    return {
        "num_bits": 4,
        "type": "float",
        "strategy": "tensor_group",
        "symmetric": True,
        "group_size": BLOCK,
        "dynamic": dynamic,
        "scale_dtype": "torch.float8_e4m3fn",
    }


def _matches(pattern: str, module: str) -> bool:
    """compressed-tensors' patterns: a whole name, or a regular expression of its beginning."""
    if pattern.startswith("re:"):
        return re.match(pattern.removeprefix("re:"), module) is not None
    return pattern == module


# reading


def is_nvfp4(config: Mapping[str, Any]) -> bool:
    """Whether a quantization_config (or an hf_quant_config.json) speaks of NVFP4 in one of the two
    formats; it may yet be refused by parse.
    """
    algorithm = str(_section(config).get("quant_algo") or "").upper()
    formats = [config.get("format"), *(group.get("format") for _, group in _groups(config))]
    return "NVFP4" in algorithm or PACK_FORMAT in formats


def parse(config: Mapping[str, Any], source: str = "quantization_config") -> Scheme:
    """The scheme that a quantization_config, or the whole of an hf_quant_config.json, describes.

    Raises:
        ValueError: naming the source, the entry, what it needs and what it got.
    """
    method = str(config.get("quant_method") or "").lower()
    if method == COMPRESSED_TENSORS.name:
        return _parse_compressed_tensors(config, source)
    if method.startswith(MODELOPT.name) or not method and "quant_algo" in _section(config):
        return _parse_modelopt(config, source)
    need = f"{MODELOPT.name!r} or {COMPRESSED_TENSORS.name!r}"
    raise _refused(source, "quant_method", need, config.get("quant_method"))


def read_scheme(folder: Path) -> Scheme | None:
    """The scheme of a Hugging Face folder; None where nothing says that it is quantized.

    Raises:
        ValueError: it is quantized in another way, or a file is no JSON.
    """
    model, apart = folder / CONFIG_FILE, folder / QUANT_CONFIG_FILE
    config = read_json(model).get("quantization_config") if model.exists() else None
    if config and (is_nvfp4(config) or not apart.exists()):
        return parse(config, f"{model.name}: quantization_config")
    return parse(read_json(apart), apart.name) if apart.exists() else None


def read_json(path: Path) -> dict[str, Any]:
    try:
        found = json.loads(path.read_text())
    except (UnicodeDecodeError, json.JSONDecodeError) as error:
        raise ValueError(f"{path} needs to be JSON, got {error}") from error
    if not isinstance(found, dict):
        raise ValueError(f"{path} needs a JSON object, got {type(found).__name__}")
    return found


def _section(config: Mapping[str, Any]) -> Mapping[str, Any]:
    """ModelOpt's older files have everything one level down."""
    inner = config.get("quantization")
    return inner if isinstance(inner, Mapping) else config


def _groups(config: Mapping[str, Any]) -> list[tuple[str, Mapping[str, Any]]]:
    groups = config.get("config_groups")
    found = groups.items() if isinstance(groups, Mapping) else ()
    return [(f"config_groups.{k}", group) for k, group in found if isinstance(group, Mapping)]


def _parse_modelopt(config: Mapping[str, Any], source: str) -> Scheme:
    section = _section(config)
    algorithm = str(section.get("quant_algo") or "").upper()
    if algorithm not in ALGORITHMS:
        need = "one of " + ", ".join(ALGORITHMS)
        raise _refused(source, "quant_algo", need, section.get("quant_algo"))
    size = section.get("group_size")
    if size not in (None, BLOCK, str(BLOCK)):
        raise _refused(source, "group_size", str(BLOCK), size)
    ignore = section.get("exclude_modules", section.get("ignore"))
    calibrated = algorithm in CALIBRATED_ALGORITHMS
    groups = tuple(
        Group(
            _strings(group.get("targets", [EVERY_LINEAR]), source, f"{name}.targets"),
            calibrated and group.get("input_activations") is not None,
        )
        for name, group in _nvfp4_groups(section, source)
    )
    return Scheme(MODELOPT, groups or (Group(calibrated=calibrated),), _ignored(ignore, source))


def _parse_compressed_tensors(config: Mapping[str, Any], source: str) -> Scheme:
    for name, group in (("", config), *_groups(config)):
        if group.get("format", PACK_FORMAT) not in (PACK_FORMAT, None):
            entry = f"{name}.format".strip(".")
            raise _refused(source, entry, repr(PACK_FORMAT), group["format"])
    groups = tuple(
        Group(
            _strings(group.get("targets"), source, f"{name}.targets"),
            (group.get("input_activations") or {}).get("dynamic", True) is not True,
        )
        for name, group in _nvfp4_groups(config, source)
    )
    if not groups:
        raise _refused(source, "config_groups", "at least one group", config.get("config_groups"))
    return Scheme(COMPRESSED_TENSORS, groups, _ignored(config.get("ignore"), source))


def _nvfp4_groups(
    config: Mapping[str, Any], source: str
) -> Iterable[tuple[str, Mapping[str, Any]]]:
    """The groups, each found to have NVFP4 weights, and inputs in NVFP4 or left alone."""
    for name, group in _groups(config):
        for part in ("weights", "input_activations"):
            numbers = group.get(part)
            if numbers is None and part == "input_activations":
                continue
            got = {key: (numbers or {}).get(key) for key in ("num_bits", "type", "group_size")}
            if got != {"num_bits": 4, "type": "float", "group_size": BLOCK}:
                need = f"NVFP4 (4-bit floats in groups of {BLOCK})"
                raise _refused(source, f"{name}.{part}", need, numbers)
        yield name, group


def _ignored(patterns: object, source: str) -> tuple[str, ...]:
    return () if patterns is None else _strings(patterns, source, "ignore")


def _strings(found: object, source: str, entry: str) -> tuple[str, ...]:
    if not isinstance(found, list) or not all(isinstance(each, str) for each in found):
        raise _refused(source, entry, "a list of names", found)
    return tuple(found)


def _refused(source: str, entry: str, need: str, got: object) -> ValueError:
    return ValueError(f"{source}: {entry} needs {need}, got {got!r}")
