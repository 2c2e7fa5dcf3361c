"""python -m nvfp4 convert: what a crash leaves, what is refused, how much memory it takes."""

import ctypes
import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest
from checkpoint_files import save_model
from conversion import names_in, no_bar
from paths import ROOT
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM
from typer.testing import CliRunner

from nvfp4.checkpoints import Checkpoint, load_model
from nvfp4.checkpoints.convert import Options, convert
from nvfp4.checkpoints.source import Source
from nvfp4.checkpoints.writer import ShardedWriter
from nvfp4.cli import app


def test_an_error_in_the_middle_leaves_nothing(tmp_path, source, monkeypatch):
    write, count = ShardedWriter.write, iter(range(100))

    def failing(self, name, tensor):
        if next(count) == 40:
            raise OSError("no space left on device")
        write(self, name, tensor)

    monkeypatch.setattr(ShardedWriter, "write", failing)
    args = ["convert", str(source("mixtral")), str(tmp_path / "out"), "--shard-size", "20KB"]
    result = CliRunner().invoke(app, args)
    assert result.exit_code == 2 and "no space left on device" in result.stderr
    assert names_in(tmp_path) == []


KILLED = """
import os, signal, sys
from nvfp4.checkpoints.source import Source
from nvfp4.checkpoints.writer import ShardedWriter
from nvfp4.cli import app
write, count = ShardedWriter.write, iter(range(100))
def killed(self, name, tensor):
    if next(count) == 40:
        os.kill(os.getpid(), signal.SIGKILL)
    write(self, name, tensor)
ShardedWriter.write = killed
app(sys.argv[1:])
"""


@pytest.mark.slow
def test_a_kill_in_the_middle_leaves_nothing_that_loads(tmp_path, source):
    args = ["convert", str(source("mixtral")), str(tmp_path / "out"), "--shard-size", "20KB"]
    done = subprocess.run([sys.executable, "-c", KILLED, *args], cwd=ROOT, capture_output=True)
    assert done.returncode == -signal.SIGKILL, done.stderr.decode()
    (partial,) = names_in(tmp_path)
    assert partial.startswith(".out.") and partial.endswith(".partial")
    assert any((tmp_path / partial).glob("*.safetensors"))
    for load in (Checkpoint, load_model, AutoModelForCausalLM.from_pretrained):
        with pytest.raises((ValueError, OSError)):
            load(tmp_path / partial)
    assert CliRunner().invoke(app, args).exit_code == 0  # it is not in the way


def test_a_folder_that_is_there(tmp_path, source):
    args = ["convert", str(source("llama")), str(tmp_path / "out")]
    (tmp_path / "out").mkdir()
    assert CliRunner().invoke(app, args).exit_code == 0  # empty
    before = (tmp_path / "out" / "model.safetensors").read_bytes()
    result = CliRunner().invoke(app, args)
    assert result.exit_code == 2 and "DST needs a new or empty folder" in result.stderr
    assert (tmp_path / "out" / "model.safetensors").read_bytes() == before


@pytest.mark.parametrize(
    "options, message",
    [
        (["--format", "gptq"], "--format needs 'modelopt' or 'compressed-tensors', got 'gptq'"),
        (["--exclude", "*.kproj"], "--exclude needs a linear layer's name, got '*.kproj'"),
        (["--exclude", "*"], "SRC needs linear layers to quantize, got none"),
        (["--shard-size", "big"], "--shard-size needs a size such as 5GB or 500MB, got 'big'"),
        (["--calibrate", "nowhere.txt"], "--calibrate needs a text file, got nowhere.txt"),
        (["--calibrate", os.devnull], "--calibrate needs a text"),
    ],
)
def test_refused_options(tmp_path, source, options, message):
    result = CliRunner().invoke(
        app, ["convert", str(source("llama")), str(tmp_path / "out"), *options]
    )
    assert result.exit_code == 2 and message in result.stderr, result.output
    assert names_in(tmp_path) == []


def _spoil(folder, change):
    tensors = load_file(folder / "model.safetensors")
    change(tensors)
    from safetensors.torch import save_file

    save_file(tensors, folder / "model.safetensors")


UP = "model.layers.1.mlp.up_proj.weight"
SPOILED = {
    "no folder": (lambda d: d.rename(d.with_name("moved")), "SRC needs an existing model folder"),
    "no config": (lambda d: (d / "config.json").unlink(), "SRC needs a folder with config.json"),
    "no weights": (
        lambda d: (d / "model.safetensors").unlink(),
        "model.safetensors needs to exist",
    ),
    "cut short": (
        lambda d: (d / "model.safetensors").write_bytes(
            (d / "model.safetensors").read_bytes()[:-1]
        ),
        "model.safetensors needs to be a whole safetensors file",
    ),
    "NaN": (
        lambda d: _spoil(d, lambda t: t[UP].view(-1)[5].fill_(float("nan"))),
        f"SRC: {UP} needs finite values, got NaN or Inf",
    ),
    "Inf": (
        lambda d: _spoil(d, lambda t: t[UP].view(-1)[5].fill_(float("-inf"))),
        f"SRC: {UP} needs finite values, got NaN or Inf",
    ),
    "float64": (
        lambda d: _spoil(d, lambda t: t.update({UP: t[UP].double()})),
        f"{UP} in",
    ),
}


@pytest.mark.parametrize("change, message", SPOILED.values(), ids=SPOILED)
def test_refused_sources(tmp_path, change, message):
    folder = save_model(tmp_path / "source", "llama")
    change(folder)
    result = CliRunner().invoke(app, ["convert", str(folder), str(tmp_path / "out")])
    assert result.exit_code == 2 and message in result.stderr, result.output
    assert not [name for name in names_in(tmp_path) if "out" in name]


def test_what_is_quantized_already(tmp_path, source):
    convert(source("llama"), tmp_path / "once", Options(), no_bar)
    result = CliRunner().invoke(app, ["convert", str(tmp_path / "once"), str(tmp_path / "twice")])
    assert result.exit_code == 2 and "got one quantized (modelopt), such as model." in result.stderr
    assert names_in(tmp_path) == ["once"]


def _status(key):
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) * 1024 for line in lines if line.startswith(key))


@pytest.mark.slow
@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="needs /proc")
def test_memory_is_bounded_by_the_largest_tensor(tmp_path, source, monkeypatch):
    """A model of 8 layers of 8 MB, none of its tensors above 2: the process's own memory (not the
    mapped file's pages, which the system takes back) grows by a few tensors.
    """
    sizes = dict(hidden_size=512, intermediate_size=2048, num_hidden_layers=8)
    folder = save_model(tmp_path / "source", "llama", initializer_range=0.02, **sizes)
    convert(source("llama"), tmp_path / "first", Options(), no_bar)  # what is imported once
    write, seen = ShardedWriter.write, []

    def watched(self, name, tensor):
        seen.append(_own_memory())
        write(self, name, tensor)

    monkeypatch.setattr(ShardedWriter, "write", watched)
    before, largest = _own_memory(), 2 * 512 * 2048
    summary = convert(folder, tmp_path / "out", Options(), no_bar)
    assert summary.bytes_before > 28 * largest
    assert max(seen) - before < 6 * largest, f"{(max(seen) - before) / largest:.1f} tensors"
    # That a converter which keeps what it reads would be noticed:
    read, kept, before = Source.read, [], _own_memory()
    monkeypatch.setattr(Source, "read", lambda *args: kept.append(read(*args).clone()) or kept[-1])
    convert(folder, tmp_path / "again", Options(), no_bar)
    assert _own_memory() - before > 12 * largest


def _own_memory():
    ctypes.CDLL(None).malloc_trim(0)  # what the allocator keeps, of tests before too, is not it
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) * 1024 for line in lines if line.startswith("RssAnon"))
