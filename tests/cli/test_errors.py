"""What a user can mend is said in one line, once, and a command that is ended leaves nothing."""

import os
import signal
import subprocess
import sys

import pytest
import torch
from checkpoint_files import save_model
from paths import ROOT
from typer.testing import CliRunner

import nvfp4
from nvfp4.cli import app
from nvfp4.version import VERSION


def one_line(*arguments: object) -> str:
    result = CliRunner().invoke(app, [str(each) for each in arguments])
    assert result.exit_code == 2, result.output
    assert "Traceback" not in result.output and result.stderr.count("error: ") == 1
    return result.stderr.strip().splitlines()[-1]


def test_version():
    result = CliRunner().invoke(app, ["--version"])
    assert result.exit_code == 0 and result.stdout == f"nvfp4 {VERSION}\n"


def test_an_unknown_backend_is_said_once_with_where_it_came_from(monkeypatch):
    monkeypatch.setenv("NVFP4_BACKEND", "cublas")
    said = "NVFP4_BACKEND needs one of cutedsl, triton, reference, got 'cublas'"
    assert one_line("info").endswith(said)
    with pytest.raises(ValueError, match=said):
        nvfp4.quantize(torch.randn(2, 16))
    nvfp4.quantize(torch.randn(2, 16), backend="reference")


def test_a_text_that_is_none_is_named_before_a_model_is_loaded(tmp_path):
    latin = tmp_path / "latin.txt"
    latin.write_bytes(b"caf\xe9")
    assert f"got byte 3 of {latin}" in one_line("demo", "--text", latin)
    assert f"got byte 3 of {latin}" in one_line("convert", "no", "out", "--calibrate", latin)
    loop = tmp_path / "loop"
    loop.symlink_to(loop)
    assert str(loop) in one_line("demo", "--text", loop)
    assert str(loop) in one_line("inspect", loop)


def test_a_full_disk_is_said_with_the_file(tmp_path, monkeypatch):
    from nvfp4.checkpoints.convert import ShardedWriter

    def full(*_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(ShardedWriter, "write", full)
    source, out = save_model(tmp_path / "source", "llama"), tmp_path / "out"
    assert one_line("convert", source, out) == f"error: {out}: No space left on device"
    assert sorted(tmp_path.iterdir()) == [source]


def test_an_unknown_architecture():
    assert "got 'hopper'" in one_line("warmup", "--shape", "64x64", "--arch", "hopper")
    assert "got 'hopper'" in one_line("info", "--emulate", "hopper")


def test_the_table_of_info_was_wider_than_a_terminal(monkeypatch):
    monkeypatch.setenv("COLUMNS", "80")
    table = [line for line in CliRunner().invoke(app, ["info"]).stdout.splitlines() if "│" in line]
    assert table and all(len(line) <= 80 for line in table)


STOPPED = """
import sys, time
from nvfp4.checkpoints import convert
def slow(*_):
    print("writing", flush=True)
    time.sleep(60)
convert.ShardedWriter.write = slow
from nvfp4.cli import app
app(["convert", *sys.argv[1:]])
"""


@pytest.mark.slow
def test_a_terminated_conversion_left_a_folder(tmp_path):
    source = save_model(tmp_path / "source", "llama")
    command = [sys.executable, "-c", STOPPED, str(source), str(tmp_path / "out")]
    with subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE) as process:
        assert process.stdout is not None and process.stdout.readline() == b"writing\n"
        os.kill(process.pid, signal.SIGTERM)
        assert process.wait(30) == 128 + signal.SIGTERM
    assert sorted(tmp_path.iterdir()) == [source]


ABSENT = """
import importlib.abc, sys
class Absent(importlib.abc.MetaPathFinder):
    def find_spec(self, name, path, target=None):
        if name.split(".")[0] == "triton":
            raise ModuleNotFoundError("No module named 'triton'", name="triton")
sys.meta_path.insert(0, Absent())
from importlib import util
found = util.find_spec
util.find_spec = lambda name, *a: None if name == "triton" else found(name, *a)
from nvfp4.cli import app
for command in sys.argv[1:]:
    try:
        app(command.split())
    except SystemExit as end:
        print(f"{command.split()[0]} ended with {end.code}", file=sys.stderr)
"""


@pytest.mark.slow
def test_a_command_failed_to_start_where_triton_is_absent():
    commands = "info", "tune --out x --shape 64x64", "bench"
    run = subprocess.run(
        [sys.executable, "-c", ABSENT, *commands], cwd=ROOT, capture_output=True, text=True
    )
    ends = [line for line in run.stderr.splitlines() if " ended with " in line]
    assert ends == ["info ended with 0", "tune ended with 2", "bench ended with 2"], run.stderr
    assert run.stderr.count("needs the package triton, got none") == 2, run.stderr
