"""convert --include lm_head: a head in NVFP4, also of a model that ties it to its embedding."""

import json
import warnings

import pytest
import torch
from conversion import PROMPT, no_bar, tensors_of
from torch import nn

from nvfp4.checkpoints import Checkpoint, load_model
from nvfp4.checkpoints.convert import Options, convert
from nvfp4.layers import Linear

IDS = torch.arange(1, 9)[None]
EMBEDDING = "model.embed_tokens.weight"


@pytest.mark.parametrize(
    "tied, format, method",
    [(True, "modelopt", "rtn"), (False, "compressed-tensors", "gptq")],
)
def test_a_head_is_quantized(tmp_path, source, tied, format, method):
    text = tmp_path / "text.txt"
    text.write_text(PROMPT)
    floats = source("llama", tie_word_embeddings=tied)
    calibrated = text if method == "gptq" else None
    options = Options(format, text=calibrated, method=method, include=("lm_head",))
    summary = convert(floats, tmp_path / "out", options, no_bar)
    checkpoint = Checkpoint(tmp_path / "out")
    assert "lm_head" in checkpoint.modules and "lm_head" not in summary.left_in_floats
    assert ("no block: quantized by mse" in "".join(summary.notes)) == (method == "gptq")
    assert (checkpoint.input_global_scale("lm_head") is None) == (calibrated is None)
    config = json.loads((tmp_path / "out" / "config.json").read_text())
    assert not config["tie_word_embeddings"]
    before, after = tensors_of(floats), tensors_of(tmp_path / "out")
    assert torch.equal(after[EMBEDDING], before[EMBEDDING])

    model = load_model(tmp_path / "out", activation="bf16", dtype=torch.float32)
    assert isinstance(model.lm_head, Linear)
    weight = checkpoint.weight("lm_head").dequantize(torch.float32)
    original = before[EMBEDDING if tied else "lm_head.weight"].float()
    assert 0 < (weight - original).norm() / original.norm() < 0.15
    with torch.no_grad():
        logits = model(IDS).logits
        want = model.model(IDS).last_hidden_state.bfloat16().float() @ weight.T
    assert nn.functional.cosine_similarity(logits.flatten(), want.flatten(), dim=0) > 1 - 1e-6
    with warnings.catch_warnings():  # no weight was dequantized
        warnings.simplefilter("error")
        load_model(tmp_path / "out")


def test_only_a_head_can_be_included(tmp_path, source):
    for pattern in ("embed_tokens", "q_proj"):
        options = Options(include=(pattern,))
        with pytest.raises(ValueError, match=r"--include needs the name of the head \(lm_head\)"):
            convert(source("llama"), tmp_path / "out", options, no_bar)
