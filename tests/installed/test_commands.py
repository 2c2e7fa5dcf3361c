"""Commands, layers and what else an installation has."""

import subprocess
import sys
from importlib.metadata import entry_points

import torch

import nvfp4


def _python(*arguments: str) -> str:
    line = [sys.executable, "-I", *arguments]
    run = subprocess.run(line, capture_output=True, text=True)
    assert run.returncode == 0, run.stderr[-2000:]
    return run.stdout


def test_layers_are_there_once_nvfp4_is_imported():
    assert "Linear" in _python("-c", "import nvfp4; print(nvfp4.layers.Linear)")


def test_warmup_compiles_for_sm_100(tmp_path, monkeypatch):
    monkeypatch.setenv("NVFP4_CACHE_DIR", str(tmp_path))
    done = nvfp4.warmup([(64, 256)], 1, (torch.float16,), device="cpu", backend="cutedsl")
    assert len(done) == len(list(tmp_path.glob("*.zip"))) > 0
    assert all(line.endswith(": compiled") for line in done)


def test_others_find_the_package_by_its_entry_points():
    (command,) = entry_points(group="console_scripts", name="nvfp4")
    (plugin,) = entry_points(group="vllm.general_plugins", name="nvfp4")
    assert callable(command.load()) and callable(plugin.load())
