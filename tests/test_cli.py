"""The commands, as a user types them."""

import json

import pytest
import torch
from typer.testing import CliRunner

from nvfp4.cli import app
from nvfp4.ops.explain import STAGES


@pytest.fixture
def run():
    return lambda *args: CliRunner().invoke(app, args)


def test_info(run):
    result = run("info")
    assert result.exit_code == 0
    for word in ("cutedsl", "triton", "reference", "needs sm_100", *STAGES):
        assert word in result.stdout


def test_info_json(run):
    facts = json.loads(run("info", "--json").stdout)
    assert torch.__version__.startswith(facts["packages"]["torch"])
    assert set(facts["devices"]["cpu"]["runs"]) == set(STAGES)
    assert facts["devices"]["cpu"]["backends"]["reference"]["mm"] == "ok"


def test_bench(run, tmp_path):
    result = run(
        "bench", "--op", "linear", "--rounds", "2", "--out", str(tmp_path), "--name", "x", "--json"
    )
    assert result.exit_code == 0, result.output
    rows = json.loads(result.stdout)["rows"]
    assert rows == json.loads((tmp_path / "x.json").read_text())["rows"]
    assert {"bf16", "dequantize + bf16"} == set(rows[0]["ratios"])
    assert all(row["microseconds"] > 0 for row in rows)
    assert "| linear |" in (tmp_path / "x.md").read_text()


def test_a_user_error_is_one_line_and_status_2(run, tmp_path):
    result = run("bench", "--op", "conv2d")
    assert result.exit_code == 2 and result.stderr.strip().endswith("got 'conv2d'")
    missing = tmp_path / "missing.gguf"
    result = run("demo", "--model", str(missing))
    assert (
        result.exit_code == 2
        and f"--model needs an existing file or folder, got {missing}" in result.stderr
    )
    assert "Traceback" not in result.output
