"""Reading of a checkpoint's configuration: the scheme in it, or the reason to refuse it."""

import json
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from nvfp4.checkpoints.schemes import (
    ALGORITHMS,
    COMPRESSED_TENSORS,
    CONFIG_FILE,
    EVERY_LINEAR,
    MODELOPT,
    PACK_FORMAT,
    QUANT_CONFIG_FILE,
    WEIGHTS_ONLY_ALGORITHM,
    Group,
    Scheme,
)
from nvfp4.spec.format import BLOCK, W4A16


def is_nvfp4(config: Mapping[str, Any]) -> bool:
    """Whether a quantization_config or an hf_quant_config.json is about NVFP4 in a known format.

    `parse` may still refuse it.
    """
    algorithm = str(_section(config).get("quant_algo") or "").upper()
    formats = [config.get("format"), *(group.get("format") for _, group in _groups(config))]
    return "NVFP4" in algorithm or PACK_FORMAT in formats


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
    """The part with the quantization: older ModelOpt files have it one level down."""
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
    weights_alone = algorithm == WEIGHTS_ONLY_ALGORITHM
    groups = tuple(
        _group(
            _strings(group.get("targets", [EVERY_LINEAR]), source, f"{name}.targets"),
            None if weights_alone else group.get("input_activations"),
            dynamic=False,
        )
        for name, group in _nvfp4_groups(section, source)
    )
    if not groups:
        groups = (_group((EVERY_LINEAR,), None if weights_alone else {}, dynamic=False),)
    return Scheme(MODELOPT, groups, _ignored(ignore, source))


def _parse_compressed_tensors(config: Mapping[str, Any], source: str) -> Scheme:
    for name, group in (("", config), *_groups(config)):
        if group.get("format", PACK_FORMAT) not in (PACK_FORMAT, None):
            entry = f"{name}.format".strip(".")
            raise _refused(source, entry, repr(PACK_FORMAT), group["format"])
    groups = tuple(
        _group(
            _strings(group.get("targets"), source, f"{name}.targets"),
            group.get("input_activations"),
            dynamic=True,
        )
        for name, group in _nvfp4_groups(config, source)
    )
    if not groups:
        raise _refused(source, "config_groups", "at least one group", config.get("config_groups"))
    return Scheme(COMPRESSED_TENSORS, groups, _ignored(config.get("ignore"), source))


def _group(targets: tuple[str, ...], inputs: Mapping[str, Any] | None, dynamic: bool) -> Group:
    """Make a group with these input_activations; a missing entry means `dynamic`."""
    if inputs is None:
        return Group(targets, calibrated=False, activation=W4A16)
    return Group(targets, calibrated=inputs.get("dynamic", dynamic) is not True)


def _nvfp4_groups(
    config: Mapping[str, Any], source: str
) -> Iterable[tuple[str, Mapping[str, Any]]]:
    """Yield the groups, checked to have NVFP4 weights and inputs in NVFP4 or in floats."""
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
