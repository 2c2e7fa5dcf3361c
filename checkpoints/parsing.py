"""Reading of a checkpoint's configuration: the scheme in it, or the reason to refuse it."""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

from nvfp4.checkpoints.schemes import (
    ALGORITHMS,
    COMPRESSED_TENSORS,
    CONFIG_FILE,
    EVERY_LINEAR,
    MIXED_ALGORITHM,
    MIXED_FORMAT,
    MODELOPT,
    PACK_FORMAT,
    QUANT_CONFIG_FILE,
    QUANTIZED_ALGORITHMS,
    WEIGHTS_ONLY_ALGORITHM,
    Group,
    Scheme,
)
from nvfp4.spec.format import BLOCK, W4A4, W4A16


def is_nvfp4(config: Mapping[str, Any]) -> bool:
    """Whether a quantization_config or an hf_quant_config.json is about NVFP4 in a known format.

    `parse` may still refuse it.
    """
    section = _section(config)
    algorithm = _algorithm(section)
    formats = [config.get("format"), *(group.get("format") for _, group in _groups(config))]
    mixed = algorithm == MIXED_ALGORITHM or MIXED_FORMAT in formats
    return (
        "NVFP4" in algorithm
        or PACK_FORMAT in formats
        or any(_algorithm(each) in ALGORITHMS for each in _layers(section).values())
        or mixed
        and any(not _not_nvfp4(group) for _, group in _groups(config))
    )


def parse(config: Mapping[str, Any], source: str = "quantization_config") -> Scheme:
    """Read the scheme from a quantization_config or from a whole hf_quant_config.json.

    Raises:
        ValueError: an entry is refused; the message names it, what it needs and what it got.
    """
    method = str(config.get("quant_method") or "").lower()
    if method == COMPRESSED_TENSORS.name:
        return _parse_compressed_tensors(config, source)
    if method.startswith(MODELOPT.name) or not method and "quant_algo" in _section(config):
        return _parse_modelopt(config, source)
    need = f"{MODELOPT.name!r} or {COMPRESSED_TENSORS.name!r}"
    raise _refused(source, "quant_method", need, config.get("quant_method"))


def read_scheme(folder: Path) -> Scheme | None:
    """Read the scheme of a Hugging Face folder; None if nothing says that it is quantized.

    Raises:
        ValueError: it is quantized in another way, or a file is no JSON.
    """
    model, apart = folder / CONFIG_FILE, folder / QUANT_CONFIG_FILE
    config = quantization_config(read_json(model)) if model.exists() else None
    if config and (is_nvfp4(config) or not apart.exists()):
        return parse(config, f"{model.name}: quantization_config")
    return parse(read_json(apart), apart.name) if apart.exists() else None


def quantization_config(config: Mapping[str, Any]) -> dict[str, Any] | None:
    """The quantization_config in a config.json; some vision-language models keep the text's."""
    text = config.get("text_config")
    for part in (config, text if isinstance(text, Mapping) else {}):
        if isinstance(found := part.get("quantization_config"), dict) and found:
            return found
    return None


def read_json(path: Path) -> dict[str, Any]:
    try:
        found = json.loads(path.read_text())
    except (UnicodeDecodeError, json.JSONDecodeError) as error:
        raise ValueError(f"{path} needs to be JSON, got {error}") from error
    if not isinstance(found, dict):
        raise ValueError(f"{path} needs a JSON object, got {type(found).__name__}")
    return found


def _section(config: Mapping[str, Any]) -> Mapping[str, Any]:
    """The part with the quantization: older ModelOpt files have it one level down."""
    inner = config.get("quantization")
    return inner if isinstance(inner, Mapping) else config


def _groups(config: Mapping[str, Any]) -> list[tuple[str, Mapping[str, Any]]]:
    groups = config.get("config_groups")
    found = groups.items() if isinstance(groups, Mapping) else ()
    return [(f"config_groups.{k}", group) for k, group in found if isinstance(group, Mapping)]


def _algorithm(section: Mapping[str, Any]) -> str:
    return str(section.get("quant_algo") or "").upper()


def _layers(section: Mapping[str, Any]) -> dict[str, Mapping[str, Any]]:
    """The layers of a mixed checkpoint of ModelOpt, by name, each with its algorithm."""
    found = section.get("quantized_layers")
    layers = found.items() if isinstance(found, Mapping) else ()
    return {name: each for name, each in layers if isinstance(each, Mapping)}


class _Targets(NamedTuple):
    """The groups of NVFP4 layers, and the targets that are quantized to another format."""

    groups: tuple[Group, ...]
    others: tuple[str, ...]


def _parse_modelopt(config: Mapping[str, Any], source: str) -> Scheme:
    section = _section(config)
    algorithm = _algorithm(section)
    if algorithm not in (*ALGORITHMS, MIXED_ALGORITHM):
        need = "one of " + ", ".join((*ALGORITHMS, MIXED_ALGORITHM))
        raise _refused(source, "quant_algo", need, section.get("quant_algo"))
    ignore = _ignored(section.get("exclude_modules", section.get("ignore")), source)
    if layers := _layers(section):
        groups, others = _of_layers(layers, source)
        if not groups:
            raise _refused(source, "quantized_layers", "a layer in NVFP4", sorted(layers)[:1])
        return Scheme(MODELOPT, groups, ignore, others)
    _needs_block(section, "", source)
    weights_alone = algorithm == WEIGHTS_ONLY_ALGORITHM
    groups, others = _of_groups(section, source, dynamic=False, weights_alone=weights_alone)
    if not groups and algorithm == MIXED_ALGORITHM:
        raise _refused(source, "quantized_layers", "at least one layer", None)
    if not groups:
        groups = (_group((EVERY_LINEAR,), None if weights_alone else {}, dynamic=False),)
    return Scheme(MODELOPT, groups, ignore, others)


def _of_layers(layers: Mapping[str, Mapping[str, Any]], source: str) -> _Targets:
    """Sort the layers of a mixed checkpoint by their algorithms."""
    targets: dict[str, list[str]] = {W4A4: [], W4A16: [], "": []}
    for name, layer in layers.items():
        algorithm = _algorithm(layer)
        if algorithm in ALGORITHMS:
            _needs_block(layer, f"quantized_layers.{name}.", source)
        kinds = dict.fromkeys(QUANTIZED_ALGORITHMS, W4A4) | {WEIGHTS_ONLY_ALGORITHM: W4A16}
        targets[kinds.get(algorithm, "")].append(name)
    groups = [
        Group(tuple(targets[activation]), activation == W4A4, activation)
        for activation in (W4A4, W4A16)
        if targets[activation]
    ]
    return _Targets(tuple(groups), tuple(targets[""]))


def _needs_block(section: Mapping[str, Any], where: str, source: str) -> None:
    size = section.get("group_size")
    if size not in (None, BLOCK, str(BLOCK)):
        raise _refused(source, f"{where}group_size", str(BLOCK), size)


def _of_groups(
    config: Mapping[str, Any], source: str, dynamic: bool, weights_alone: bool = False
) -> _Targets:
    """Sort the config_groups; a missing entry of input_activations means `dynamic`.

    Raises:
        ValueError: there are groups, but none has NVFP4 weights, with inputs in NVFP4 or in floats.
    """
    groups: list[Group] = []
    others: list[str] = []
    for name, group in _groups(config):
        default = [EVERY_LINEAR] if dynamic is False else None
        targets = _strings(group.get("targets", default), source, f"{name}.targets")
        if _not_nvfp4(group):
            others.extend(targets)
        else:
            inputs = None if weights_alone else group.get("input_activations")
            groups.append(_group(targets, inputs, dynamic))
    if others and not groups:
        name, group = _groups(config)[0]
        part = _not_nvfp4(group)
        if part == "format":
            raise _refused(source, f"{name}.format", repr(PACK_FORMAT), group["format"])
        need = f"NVFP4 (4-bit floats in groups of {BLOCK})"
        raise _refused(source, f"{name}.{part}", need, group.get(part))
    return _Targets(tuple(groups), tuple(others))


def _not_nvfp4(group: Mapping[str, Any]) -> str:
    """The entry of a group by which it is not NVFP4; "" if it is."""
    if group.get("format") not in (PACK_FORMAT, None):
        return "format"
    for part in ("weights", "input_activations"):
        numbers = group.get(part)
        if numbers is None and part == "input_activations":
            continue
        numbers = numbers if isinstance(numbers, Mapping) else {}
        got = {key: numbers.get(key) for key in ("num_bits", "type", "group_size")}
        if got != {"num_bits": 4, "type": "float", "group_size": BLOCK}:
            return part
    return ""


def _parse_compressed_tensors(config: Mapping[str, Any], source: str) -> Scheme:
    format = config.get("format")
    if format not in (PACK_FORMAT, MIXED_FORMAT, None):
        raise _refused(source, "format", f"{PACK_FORMAT!r} or {MIXED_FORMAT!r}", format)
    groups, others = _of_groups(config, source, dynamic=True)
    if not groups:
        raise _refused(source, "config_groups", "at least one group", config.get("config_groups"))
    return Scheme(COMPRESSED_TENSORS, groups, _ignored(config.get("ignore"), source), others)


def _group(targets: tuple[str, ...], inputs: Mapping[str, Any] | None, dynamic: bool) -> Group:
    """Make a group with these input_activations; a missing entry means `dynamic`."""
    if inputs is None:
        return Group(targets, calibrated=False, activation=W4A16)
    return Group(targets, calibrated=inputs.get("dynamic", dynamic) is not True)


def _ignored(patterns: object, source: str) -> tuple[str, ...]:
    return () if patterns is None else _strings(patterns, source, "ignore")


def _strings(found: object, source: str, entry: str) -> tuple[str, ...]:
    if not isinstance(found, list) or not all(isinstance(each, str) for each in found):
        raise _refused(source, entry, "a list of names", found)
    return tuple(found)


def _refused(source: str, entry: str, need: str, got: object) -> ValueError:
    return ValueError(f"{source}: {entry} needs {need}, got {got!r}")
