"""The table of architectures: what it compares, and that the docs show what was recorded."""

import json

import pytest
import torch

pytest.importorskip("transformers")
pytest.importorskip("accelerate")

from nvfp4.bench import architectures
from nvfp4.bench.tiny_models import CAUSAL, VISION, Kind
from nvfp4.checkpoints import load_model


@pytest.mark.parametrize(
    "kind", [Kind("kimi_linear", CAUSAL), Kind("qwen3_vl_moe", VISION)], ids=lambda k: k.model_type
)
def test_an_architecture_is_converted_and_loaded(kind):
    """Kimi-Linear had no test of loading."""
    row = architectures.row_of(kind)
    assert architectures.is_right(row), row
    assert row["blocks of experts"] and row["linear layers"]


def test_a_wrong_weight_is_seen(monkeypatch):
    def wrong(folder, dtype):
        model = load_model(folder, dtype=dtype)
        layer = model.model.layers[0].mlp.up_proj
        layer.weight = layer.weight.flip(0)
        return model

    monkeypatch.setattr(architectures, "load_model", wrong)
    row = architectures.row_of(Kind("llama", CAUSAL))
    assert row["weights"] > 1 and not architectures.is_right(row)


def test_the_docs_have_the_recorded_table():
    rows = json.loads(architectures.RESULTS.read_text())["rows"]
    page = architectures.PAGE.read_text()
    assert "\n".join(architectures.table(rows)) in page
    assert sum(map(architectures.is_right, rows)) > 190
    assert torch.tensor([r["weights"] for r in rows if "weights" in r]).max() < 0.2
