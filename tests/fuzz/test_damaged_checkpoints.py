"""Damaged checkpoints: refused in one line that names what is wrong, or read to the same logits."""

import os
import shutil
from pathlib import Path

import pytest
import torch
from conversion import no_bar
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from safetensors.torch import load_file, save_file

from nvfp4.checkpoints import FORMATS, load_model
from nvfp4.checkpoints.convert import Options, convert

TIMES = int(os.environ.get("FUZZ", "1"))
"""How many times the examples of CI are drawn."""

FUZZED = settings(
    max_examples=12 * TIMES,
    deadline=None,
    derandomize=TIMES == 1,
    suppress_health_check=list(HealthCheck),
)

IDS = torch.arange(1, 9)[None]
WEIGHTS, CONFIG, APART = "model.safetensors", "config.json", "hf_quant_config.json"


@pytest.fixture(scope="session", params=FORMATS)
def whole(request, tmp_path_factory, source) -> tuple[Path, torch.Tensor]:
    """A checkpoint of each format, and its logits."""
    folder = tmp_path_factory.mktemp(request.param) / "whole"
    convert(source("llama"), folder, Options(request.param), no_bar)
    return folder, logits(folder)


def logits(folder: Path) -> torch.Tensor:
    with torch.no_grad():
        return load_model(folder)(IDS).logits


def refused(folder: Path, named: str, want: torch.Tensor | None = None) -> None:
    """Loading raises one line with `named` in it; or, where `want` is given, gives these logits."""
    try:
        got = logits(folder)
    except ValueError as error:
        assert named in str(error) and "\n" not in str(error), error
    else:
        assert want is not None and torch.equal(got, want)


def _infinite(x):
    return torch.full_like(x, float("inf"))


TENSORS = {
    "missing": lambda x: None,
    "NaN": lambda x: (
        x.view(torch.uint8).index_fill(0, torch.tensor(0), 0x7F).view(x.dtype)
        if x.element_size() == 1
        else torch.full_like(x, float("nan"))
    ),
    "negative": lambda x: (x.view(torch.uint8) | 0x80).view(x.dtype) if x.dim() > 1 else -x.float(),
    "infinite or zero": lambda x: _infinite(x) if x.element_size() == 4 else x[:0],
    "fewer rows": lambda x: x[:-1] if x.dim() else x.expand(2).clone(),
    "fewer columns": lambda x: x[..., :-1].contiguous() if x.dim() > 1 else x.double(),
    "another dtype": lambda x: x.to(torch.int16),
    "another shape": lambda x: x[None],
}
"""What may happen to a tensor of an NVFP4 layer that is not its codes."""


@FUZZED
@given(data=st.data(), damage=st.sampled_from(list(TENSORS)))
def test_a_damaged_tensor_of_a_layer_is_named(data, damage, whole, tmp_path_factory):
    original, want = whole
    folder = tmp_path_factory.mktemp("damaged") / "folder"
    shutil.copytree(original, folder)
    tensors = load_file(folder / WEIGHTS)
    of_layers = [name for name in sorted(tensors) if "_scale" in name.rpartition(".")[2]]
    name = data.draw(st.sampled_from(of_layers))
    damaged = TENSORS[damage](tensors.pop(name))
    same = None
    if damaged is not None:
        tensors[name] = damaged
        if damage == "another shape" and damaged.numel() == 1:
            same = want  # one value in any shape is read
    save_file(tensors, folder / WEIGHTS)
    refused(folder, name, same)


@FUZZED
@given(data=st.data(), file=st.sampled_from([WEIGHTS, CONFIG, APART]))
def test_a_file_with_other_bytes_is_named(data, file, whole, tmp_path_factory):
    """Cut short, or with a changed byte of a header or of a configuration of the quantization."""
    original, want = whole
    folder = tmp_path_factory.mktemp("damaged") / "folder"
    shutil.copytree(original, folder)
    path = folder / file
    if not path.exists():
        return
    content = bytearray(path.read_bytes())
    begin, end = 0, len(content)
    if file == WEIGHTS:
        end = 8 + int.from_bytes(content[:8], "little")
    elif file == CONFIG:
        begin = content.index(b'"quantization_config"')
    at = data.draw(st.integers(begin, end - 1))
    if data.draw(st.booleans()):
        del content[at:]
    else:
        content[at] ^= 1 << data.draw(st.integers(0, 7))
    path.write_bytes(content)
    refused(folder, "", want)
