"""What is wrong with a checkpoint is said once, clearly, and before anything is served."""

import json
import shutil
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import torch
from engine.models import make
from engine.ranks import Rank, loaded, on_ranks
from safetensors.torch import load_file, save_file
from torch import Tensor

from nvfp4.checkpoints.files import SINGLE_FILE
from nvfp4.checkpoints.parsing import read_json
from nvfp4.checkpoints.schemes import CONFIG_FILE, QUANT_CONFIG_FILE

K_PROJ = "model.layers.0.self_attn.k_proj"
DOWN = "model.layers.0.mlp.down_proj"
UP = "model.layers.1.mlp.experts.2.up_proj"

Tensors = dict[str, Tensor]


@dataclass(frozen=True)
class Damage:
    """Done to the tensors of a ModelOpt checkpoint; what the error says."""

    name: str
    do: Callable[[Tensors], Any]
    says: str


def _poison(scales: Tensor) -> None:
    scales.view(torch.uint8)[3, 1] = 0x7F


DAMAGES = (
    Damage(
        "missing scale",
        lambda t: t.pop(f"{K_PROJ}.weight_scale"),
        f"{K_PROJ}.weight_scale needs to be in the checkpoint, got no such tensor",
    ),
    Damage(
        "missing global scale",
        lambda t: t.pop(f"{DOWN}.weight_scale_2"),
        f"{DOWN}.weight_scale_2 needs to be in the checkpoint, got no such tensor",
    ),
    Damage(
        "NaN scale byte",
        lambda t: _poison(t[f"{K_PROJ}.weight_scale"]),
        f"{K_PROJ}: scales needs bytes 0x00 to 0x7E, got 1 that are NaN or negative",
    ),
    Damage(
        "zero global scale",
        lambda t: t[f"{K_PROJ}.weight_scale_2"].zero_(),
        f"{K_PROJ}: global_scale needs finite positive values, got 0.0",
    ),
    Damage(
        "infinite input scale",
        lambda t: t[f"{DOWN}.input_scale"].fill_(torch.inf),
        f"{DOWN}.input_scale needs a finite positive scale, got inf",
    ),
    Damage(
        "wrong dtype",
        lambda t: t.update({f"{DOWN}.weight": t[f"{DOWN}.weight"].bfloat16()}),
        f"{DOWN}.weight needs dtype uint8, got bfloat16",
    ),
    Damage(
        "wrong dtype of scales",
        lambda t: t.update({f"{DOWN}.weight_scale": t[f"{DOWN}.weight_scale"].float()}),
        f"{DOWN}.weight_scale needs dtype float8_e4m3fn, got float32",
    ),
    Damage(
        "too few columns",
        lambda t: t.update({f"{DOWN}.weight": t[f"{DOWN}.weight"][:, :40].contiguous()}),
        f"{DOWN}.weight needs a shape that this layer's [128, 48] is a part of, "
        "got shape [128, 40]",
    ),
    Damage(
        "too many rows",
        lambda t: t.update({f"{K_PROJ}.weight": t[f"{K_PROJ}.weight"].repeat(2, 1)}),
        f"{K_PROJ}.weight_scale needs shape [128, 8], got [64, 8]",
    ),
    Damage(
        "missing scale of an expert",
        lambda t: t.pop(f"{UP}.weight_scale"),
        f"{UP}.weight_scale needs to be in the checkpoint, got no such tensor",
    ),
    Damage(
        "NaN scale byte of an expert",
        lambda t: _poison(t[f"{UP}.weight_scale"]),
        f"{UP}: scales needs bytes 0x00 to 0x7E, got 1 that are NaN or negative",
    ),
    Damage(
        "too many columns of an expert",
        lambda t: t.update({f"{UP}.weight": t[f"{UP}.weight"].repeat(1, 2)}),
        f"{UP}.weight needs shape [32, 64], got shape [32, 128]",
    ),
    Damage(
        "too few rows of an expert",
        lambda t: t.update({f"{UP}.weight": t[f"{UP}.weight"][:16].contiguous()}),
        f"{UP}.weight needs shape [32, 64], got shape [16, 64]",
    ),
    Damage(
        "wrong dtype of an expert",
        lambda t: t.update({f"{UP}.weight": t[f"{UP}.weight"].bfloat16()}),
        f"{UP}.weight needs dtype uint8, got bfloat16",
    ),
)


def _copy(folder: Path, to: Path) -> Path:
    return Path(shutil.copytree(folder, to))


@pytest.fixture(scope="session")
def said(tmp_path_factory) -> dict[str, str]:
    """What loading said of each damage: the error's type and words."""
    root = tmp_path_factory.mktemp("damaged")
    whole = make("qwen3_moe", root / "whole").modelopt
    folders = {}
    for damage in DAMAGES:
        folder = _copy(whole, root / damage.name)
        tensors = load_file(folder / SINGLE_FILE)
        damage.do(tensors)
        save_file(tensors, folder / SINGLE_FILE)
        folders[damage.name] = folder
    cut = folders["cut short"] = _copy(whole, root / "cut short")
    content = (cut / SINGLE_FILE).read_bytes()
    (cut / SINGLE_FILE).write_bytes(content[: len(content) // 2])
    for algorithm in ("NVFP4_SVD", "W4A4_NVFP4X"):
        other = folders[algorithm] = _copy(whole, root / algorithm)
        config = read_json(other / CONFIG_FILE)
        config["quantization_config"]["quant_algo"] = algorithm
        (other / CONFIG_FILE).write_text(json.dumps(config))
        (other / QUANT_CONFIG_FILE).unlink()
    (found,) = on_ranks(1, load_each, folders)
    return found


def load_each(rank: Rank, folders: dict[str, Path]) -> dict[str, str]:
    found = {}
    for name, folder in folders.items():
        try:
            with loaded(rank, folder):
                found[name] = "nothing"
        except Exception as error:
            found[name] = f"{type(error).__name__}: {error}"
    return found


@pytest.mark.parametrize("damage", DAMAGES, ids=lambda damage: damage.name)
def test_damage_is_named(damage, said):
    assert said[damage.name] == f"ValueError: nvfp4: {damage.says}"


def test_a_file_that_is_cut_short(said):
    assert said["cut short"].startswith("SafetensorError"), said["cut short"]


@pytest.mark.parametrize("algorithm", ["NVFP4_SVD", "W4A4_NVFP4X"])
def test_an_unknown_algorithm(algorithm, said):
    need = "quant_algo needs one of NVFP4, NVFP4_AWQ, W4A16_NVFP4, MIXED_PRECISION"
    assert f"{need}, got '{algorithm}'" in said[algorithm]
