"""The command line, and what finds the package by its name."""

from importlib.metadata import entry_points

from typer.testing import CliRunner

from nvfp4.cli import app


def test_warmup_for_sm_100(tmp_path, monkeypatch):
    monkeypatch.setenv("NVFP4_CACHE_DIR", str(tmp_path))
    arguments = ("warmup", "--shape", "64x256", "--max-m", "1", "--workers", "1")
    run = CliRunner().invoke(app, arguments)
    assert run.exit_code == 0, run.output
    assert run.stdout.count(": compiled\n") == len(list(tmp_path.glob("*.zip"))) > 0


def test_others_find_the_package_by_its_entry_points():
    (command,) = entry_points(group="console_scripts", name="nvfp4")
    (plugin,) = entry_points(group="vllm.general_plugins", name="nvfp4")
    assert command.load() is app and callable(plugin.load())
