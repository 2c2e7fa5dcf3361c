"""bench --accuracy: what is compared, and against what."""

import json
import math

import pytest
import torch
from conversion import PROMPT, no_bar
from typer.testing import CliRunner

from nvfp4.bench.accuracy import wikitext
from nvfp4.bench.accuracy.measure import Predictions, compare
from nvfp4.bench.accuracy.simulate import simulated
from nvfp4.checkpoints import load_model
from nvfp4.checkpoints.convert import Options, convert
from nvfp4.cli import app


def test_means_and_standard_errors(tmp_path):
    """One window of three tokens, two of them predicted, over a vocabulary of two."""
    want = torch.tensor([[0.5, 0.5], [0.25, 0.75]])
    got = torch.tensor([[0.25, 0.75], [0.5, 0.5]])
    baseline = Predictions(tmp_path)
    baseline.save(0, want.log())
    found = compare(lambda index, window: got.log(), [torch.tensor([0, 1, 0])], baseline)
    nll = [-math.log(0.75), -math.log(0.5)]
    over = [math.log(0.5 / 0.75), math.log(0.25 / 0.5)]
    kl = [
        sum(w * math.log(w / g) for w, g in zip(*rows, strict=True))
        for rows in zip(want.tolist(), got.tolist(), strict=True)
    ]
    assert found.tokens == 2
    for mean, error, values in (
        (found.over, found.over_error, over),
        (found.kl, found.kl_error, kl),
        (math.log(found.perplexity), found.perplexity_error / found.perplexity, nll),
    ):
        a, b = values
        assert mean == pytest.approx((a + b) / 2, rel=1e-5)
        assert error == pytest.approx(abs(a - b) / 2, rel=1e-5)
    assert found.top1 == 0.0  # argmax takes the first of equals: 0 and 1, then 1 and 0


def test_a_checkpoint_is_simulated_as_it_runs(tmp_path, source):
    """In float32 with W4A4, static scales and per token: the layers' values, to rounding."""
    text = tmp_path / "text.txt"
    text.write_text(PROMPT)
    for name, given in (("static", text), ("dynamic", None)):
        convert(source("llama"), tmp_path / name, Options(text=given), no_bar)
        ids = torch.arange(1, 9)[None]
        with torch.no_grad():
            model = simulated(tmp_path / name, "nvfp4", "cpu", "four_over_six")
            layer = model.model.layers[0].mlp.down_proj
            how = {"scale_rule": "four_over_six", "activation": "nvfp4"}
            own = load_model(tmp_path / name, dtype=torch.float32, **how)
            x = torch.randn(5, layer.weight.shape[1]) * 0.01
            want = own.model.layers[0].mlp.down_proj(x)
            torch.testing.assert_close(layer(x), want, rtol=1e-5, atol=1e-6)
            assert model(ids).logits.isfinite().all()


def test_the_command(tmp_path, source):
    text, other = tmp_path / "text.txt", tmp_path / "other.txt"
    text.write_text(" ".join([PROMPT] * 4))
    other.write_text(PROMPT)
    convert(source("llama"), tmp_path / "made", Options(), no_bar)
    arguments = [
        *("bench", str(source("llama")), str(text), "--accuracy", "--methods", "rtn,mse"),
        *("--calibrate", str(other), "--checkpoint", str(tmp_path / "made")),
        *("--max-tokens", "60", "--out", str(tmp_path), "--name", "x", "--json"),
    ]
    result = CliRunner().invoke(app, arguments)
    assert result.exit_code == 0, result.output
    found = json.loads(result.stdout)
    assert json.loads((tmp_path / "x.json").read_text())["rows"] == found["rows"]
    rows = {(row["checkpoint"], row["activation"]): row for row in found["rows"]}
    assert set(rows) == {(c, a) for c in ("rtn", "mse", "made") for a in ("bf16", "nvfp4")}
    base = found["baseline"]
    assert base["over"] == base["kl"] == 0 and base["top1"] == 1 and base["tokens"] == 59
    assert all(row["found"]["kl"] > 0 for row in rows.values())
    # The same weights, with 16-bit activations: only the calibration differs.
    assert rows["rtn", "bf16"]["found"] == rows["made", "bf16"]["found"]
    assert rows["mse", "bf16"]["layers"]["weight"] < rows["mse", "bf16"]["layers"]["weight_rtn"]


@pytest.mark.parametrize(
    "arguments, said",
    [
        (["--accuracy"], "needs MODEL and TEXT, got no MODEL"),
        (["x", "missing.txt", "--accuracy"], "TEXT needs a text file, got missing.txt"),
    ],
)
def test_bad_arguments(arguments, said):
    result = CliRunner().invoke(app, ["bench", *arguments])
    assert result.exit_code == 2 and said in result.output


def test_wikitext_as_a_person_would_write_it():
    raw = '\n = A <unk> = \n \n \n It is a well @-@ known " text " ( of 1 @,@ 000 words ) .\n'
    want = '\n = A unknown = \n\n It is a well-known "text" (of 1,000 words).\n'
    assert wikitext.plain(raw) == want
