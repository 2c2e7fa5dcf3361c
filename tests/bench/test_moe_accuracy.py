"""The benchmark of accuracy on tiny sizes, as a user runs it, and what it is made of."""

import json
from dataclasses import replace

import pytest
import torch
import torch.nn.functional as F
import typer
from typer.testing import CliRunner

from nvfp4.bench.moe_accuracy import __main__ as command
from nvfp4.bench.moe_accuracy import bf16, plan, real_model, run
from nvfp4.bench.moe_accuracy.synthetic import GAUSSIAN, OUTLIERS, Source
from nvfp4.demo.model import WEIGHTS_PACKAGE

TINY = plan.Plan(
    moe=((96, 64), (64, 32)), shared=((96, 64),), linear=((48, 96),), experts=2, experts_of=4,
    top_k=2, tokens=16, timed=(3, 8), rounds=2,
)  # fmt: skip
APP = typer.Typer()
APP.command()(command.main)
STAGES = (
    "moe_dispatch", "grouped_mm w13", "glu_quantize", "grouped_mm w2", "moe_combine",
    "grouped_mm_glu_quantize", "moe",
)  # fmt: skip


@pytest.fixture
def no_model(monkeypatch):
    """As where the real model is not installed."""

    def missing():
        raise ValueError(f"needs the package {WEIGHTS_PACKAGE}")

    monkeypatch.setattr(real_model, "default_weights", missing)
    monkeypatch.setattr(command, "plan_here", lambda: TINY)


def test_the_command(no_model, tmp_path):
    out = tmp_path / "moe.json"
    result = CliRunner().invoke(APP, ["--json", "--out", str(out)])
    assert result.exit_code == 0, result.output
    report = json.loads(result.stdout)
    assert report == json.loads(out.read_text())
    # 2 sizes and a shared expert, each of 2 distributions, dynamic, static and the bound; a
    # projection has no static scale.
    assert len(report["accuracy"]) == (2 + 1) * 2 * 3 + 2 * 2
    for row in report["accuracy"]:
        assert 0.95 < row["original_weights"] < row["same_weights"] < 0.9999, row
    assert {row["data"] for row in report["accuracy"]} == {"gaussian", "outliers"}
    assert [(row["case"], row["tokens"], row["stage"]) for row in report["stages"]] == [
        (case, tokens, stage)
        for case in ("moe 96/64", "moe 64/32")
        for tokens in (3, 8)
        for stage in STAGES
    ]
    assert all(row["microseconds"] > 0 and row["backend"] for row in report["stages"])
    assert report["real_model"] == f"not measured: needs the package {WEIGHTS_PACKAGE}"
    assert report["plan"]["experts"] == 2 and report["distributions"][1]["channel_factor"] == 20


def test_the_command_prints_tables(no_model):
    result = CliRunner().invoke(APP, [], env={"COLUMNS": "200"})
    assert result.exit_code == 0, result.output
    for words in ("same weights", "shared expert 96/64", "linear 48x96", "8 tokens, us", *STAGES):
        assert words in result.stdout


def test_a_named_backend_runs_what_it_has(no_model):
    step = lambda title, total: lambda: None  # noqa: E731
    report = run.run(replace(TINY, moe=((64, 32),), timed=(3,)), None, "reference", step)
    assert set(report.backends.values()) == {"reference"}
    assert {row.backend for row in report.stages} == {"reference"}


def test_a_run_can_be_repeated(no_model):
    step = lambda title, total: lambda: None  # noqa: E731
    small = replace(TINY, moe=((64, 32),), timed=())
    first, again = (run.run(small, None, "", step).accuracy for _ in range(2))
    assert first == again
    assert run.run(replace(small, seed=1), None, "", step).accuracy != first


def test_bf16_reference_is_the_sum_over_choices():
    w13, w2 = torch.randn(3, 64, 32).bfloat16(), torch.randn(3, 32, 32).bfloat16()
    x, weights = torch.randn(5, 32).bfloat16(), torch.rand(5, 2)
    ids = torch.tensor([[0, 1], [2, 0], [1, 2], [3, -1], [0, 7]])
    want = torch.zeros(5, 32)
    for t in range(5):
        for j in range(2):
            if 0 <= (e := int(ids[t, j])) < 3:
                gate, up = (w13[e].float() @ x[t].float()).chunk(2)
                want[t] += weights[t, j] * (w2[e].float() @ (F.silu(gate) * up))
    got = bf16.moe(x, weights, ids, lambda e: (w13[e], w2[e]), 3).float()
    torch.testing.assert_close(got, want, rtol=0.05, atol=0.05 * want.abs().max().item())
    assert (got[3] == 0).all()


@pytest.mark.parametrize("distribution", [GAUSSIAN, OUTLIERS], ids=lambda d: d.name)
def test_distributions_are_what_they_say(distribution):
    source = Source(distribution, "cpu", 0)
    w = source.weight(200, 1000).float() * 1000**0.5
    far = (w.abs() > 5).float().mean()
    gains = source.gains(2000)
    x = source.activations(500, gains).float()
    size = x.pow(2).mean(0).sqrt()
    if distribution is GAUSSIAN:
        assert far < 1e-5 and (gains == 1).all() and (size < 1.2).all()
    else:
        assert 4e-4 < far < 7e-4  # of 1 in 1,000, those that 8 times a Gaussian puts above 5
        assert (gains == 20).sum() == 2 and (size > 15).sum() == 2
    again = Source(distribution, "cpu", 0)
    assert torch.equal(again.weight(200, 1000).float() * 1000**0.5, w)
