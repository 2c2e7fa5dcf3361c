"""The commands, as a user types them."""

import json
from importlib.util import find_spec

import pytest
import torch
from typer.testing import CliRunner

import nvfp4
from nvfp4.bench import cold
from nvfp4.cli import app
from nvfp4.dispatch.explain import STAGES


@pytest.fixture
def run():
    return lambda *args: CliRunner().invoke(app, args)


def test_info(run):
    result = run("info")
    assert result.exit_code == 0
    sm_100 = "emulated: sm_100" if find_spec("cutlass") else "needs the package nvidia-cutlass-dsl"
    for word in ("cutedsl", "triton", "reference", sm_100, *STAGES):
        assert word in result.stdout


def test_info_of_an_emulated_gpu(run):
    result = run("info", "--emulate", "sm_89")
    assert result.exit_code == 0
    for line in (
        "emulated sm_89",
        "triton: by name only: emulated: sm_89 code run by the CPU, slowly",
        "cutedsl: needs sm_100 or sm_103, or the CPU to emulate it, got emulated sm_89",
    ):
        assert line in result.stdout


def test_an_emulated_gpu_has_to_be_known(run):
    result = run("info", "--emulate", "sm_75")
    assert result.exit_code == 2
    assert "sm needs one of 80, 86, 89" in result.output


def test_info_json(run):
    facts = json.loads(run("info", "--json").stdout)
    assert torch.__version__.startswith(facts["packages"]["torch"])
    assert set(facts["devices"]["cpu"]["runs"]) == set(STAGES)
    assert facts["devices"]["cpu"]["backends"]["reference"]["mm"] == "ok"


BENCHED = [("linear", {"bf16", "dequantize + bf16", "weight-only"}), ("moe", {"bf16 grouped"})]


@pytest.mark.parametrize("op, peers", BENCHED)
def test_bench(run, tmp_path, op, peers):
    result = run(
        "bench", "--op", op, "--rounds", "2", "--out", str(tmp_path), "--name", "x", "--json"
    )
    assert result.exit_code == 0, result.output
    rows = json.loads(result.stdout)["rows"]
    assert rows == json.loads((tmp_path / "x.json").read_text())["rows"]
    assert peers == set(rows[0]["ratios"])
    assert all(row["microseconds"] > 0 for row in rows)
    assert f"| {op} |" in (tmp_path / "x.md").read_text()


def test_cold_start_is_measured(tmp_path, compiles):
    out = tmp_path / "cold.json"
    cold.main(m=2, n=256, k=512, max_m=1, out=out)
    seconds = json.loads(out.read_text())["seconds"]
    assert set(seconds) == {"caches empty", "caches filled", "warmup for sm_90, up to 1 tokens"}
    assert all(time > 0 for steps in seconds.values() for time in steps.values())
    assert "| caches empty | linear, first |" in out.with_suffix(".md").read_text()


def test_a_user_error_is_one_line_and_status_2(run, tmp_path):
    result = run("bench", "--op", "conv2d")
    assert result.exit_code == 2 and result.stderr.strip().endswith("got 'conv2d'")
    assert "Traceback" not in result.output


@pytest.mark.skipif(find_spec("gguf") is None, reason="needs the package gguf")
def test_a_missing_model_is_named(run, tmp_path):
    missing = tmp_path / "missing.gguf"
    result = run("demo", "--model", str(missing))
    assert (
        result.exit_code == 2
        and f"--model needs an existing file or folder, got {missing}" in result.stderr
    )
    assert "Traceback" not in result.output


needs_dsl = pytest.mark.skipif(find_spec("cutlass") is None, reason="needs nvidia-cutlass-dsl")


def test_info_on_a_problem(run):
    result = run("info", "--problem", "1", "6144", "3584")
    assert result.exit_code == 0
    assert "cutedsl: on a B200, 128x8" in result.stdout
    assert "us modelled, calibrated on published times (MMA" in result.stdout
    facts = json.loads(run("info", "--problem", "8192", "8192", "8192", "--json").stdout)
    assert "256x256" in facts["problem"]["cutedsl"]
    refused = run("info", "--problem", "1", "64", "40")
    assert refused.exit_code == 2 and "K a positive multiple of 16, got 1 64 40" in refused.stderr


@needs_dsl
def test_warmup(run, tmp_path, monkeypatch, compiles):
    monkeypatch.setenv("NVFP4_CACHE_DIR", str(tmp_path))
    arguments = ("warmup", "--shape", "64x256", "--max-m", "1", "--dtype", "float16")
    first = run(*arguments)
    assert first.exit_code == 0 and first.stdout.count(": compiled\n") == 4
    assert "128x8 swapped: float16, alpha segments, row_scale" in first.stdout
    assert len(list(tmp_path.glob("*.zip"))) == 4
    again = nvfp4.warmup([(64, 256)], 1, [torch.float16], device="cpu", backend="cutedsl")
    assert {f"cutedsl: {line}" for line in again} == {
        line.replace(": compiled", ": cached") for line in first.stdout.splitlines()
    }
    assert nvfp4.warmup([(64, 256)], 1, device="cpu", backend="reference") == []


@needs_dsl
def test_warmup_of_experts(run, tmp_path, monkeypatch, compiles):
    monkeypatch.setenv("NVFP4_CACHE_DIR", str(tmp_path))
    arguments = ("warmup", "--moe", "4x64x64", "--max-m", "1", "--top-k", "2")
    first = run(*arguments)
    assert first.exit_code == 0, first.output
    kernels = first.stdout.count(": compiled\n")
    assert kernels == len(list(tmp_path.glob("*.zip"))) > 0
    assert run(*arguments).stdout.count(": cached\n") == kernels


@pytest.mark.parametrize(
    "arguments, message",
    [
        (("--shape", "64"), "--shape needs NxK, K a multiple of 16, such as 6144x3584, got '64'"),
        (("--shape", "64x40"), "got '64x40'"),
        (("--shape", "64x32", "--dtype", "int8"), "--dtype needs one of bfloat16, float16"),
        (("--shape", "64x32", "--bias", "x"), "--bias needs one of bfloat16"),
        (("--moe", "4x64"), "--moe needs ExHxI, H and I multiples of 16, such as 32x7168x2048"),
        (("--moe", "4x64x24"), "got '4x64x24'"),
        ((), "warmup needs a --shape or a --moe, got neither"),
    ],
)
def test_warmup_refuses(run, arguments, message):
    result = run("warmup", *arguments)
    assert result.exit_code == 2 and message in result.stderr
