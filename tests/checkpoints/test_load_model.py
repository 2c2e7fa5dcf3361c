"""transformers' models, loaded from what convert wrote."""

import json
from types import SimpleNamespace

import pytest
import torch
from checkpoint_files import WORDS
from conversion import by_hand, models, no_bar, tensors_of
from torch import nn
from transformers import AutoModelForCausalLM

from nvfp4.checkpoints import Checkpoint, load_model
from nvfp4.checkpoints.convert import Options, convert
from nvfp4.checkpoints.experts import activation_of
from nvfp4.layers import Linear, MoE


@models
@pytest.mark.parametrize("activation", [None, "nvfp4"])
def test_loaded_model(tmp_path, source, name, activation):
    """Its logits are those of the same layers made by hand, to the bit; and it writes."""
    convert(source(name), tmp_path / "out", Options(shard_size="30KB"), no_bar)
    model = load_model(tmp_path / "out", activation=activation)
    ids = torch.randint(1, len(WORDS), (1, 12))
    float_model = AutoModelForCausalLM.from_pretrained(source(name), dtype=torch.bfloat16).eval()
    with torch.no_grad():
        # "bf16" is what a checkpoint without input scales says.
        made = by_hand(float_model, activation=activation or "bf16")
        got, want = model(ids).logits, made(ids).logits
        assert torch.equal(got, want) and not torch.equal(got, float_model(ids).logits)
    assert model.generate(ids, max_new_tokens=3, do_sample=False).shape[1] <= 15
    layers = [m for m in model.modules() if isinstance(m, (Linear, MoE))]
    assert len(layers) >= 2 * 4


def test_deepseek_v4(tmp_path, source):
    """Names of its own (attn, ffn, w1, w3, w2), a limit in its experts, a grouped linear layer."""
    convert(source("deepseek-v4"), tmp_path / "out", Options(), no_bar)
    checkpoint, before = Checkpoint(tmp_path / "out"), tensors_of(source("deepseek-v4"))
    attention = {f"model.layers.1.attn.{leaf}" for leaf in ("wq_a", "wkv", "wq_b", "wo_b")}
    assert (
        attention < set(checkpoint.modules) and "model.layers.1.attn.wo_a" not in checkpoint.modules
    )
    assert {"head", "model.layers.1.ffn.gate", "model.layers.1.attn.wo_a"} < set(
        checkpoint.scheme.ignore
    )
    wq_a, wkv = (f"model.layers.1.attn.{leaf}" for leaf in ("wq_a", "wkv"))
    assert checkpoint.weight(wq_a).global_scale == checkpoint.weight(wkv).global_scale
    experts = "model.layers.1.ffn.experts"
    assert checkpoint.experts[experts] == 4
    got = checkpoint.weight(f"{experts}.2.w1").dequantize(torch.float32)
    want = before[f"{experts}.2.w1.weight"].float()
    assert nn.functional.cosine_similarity(got.flatten(), want.flatten(), dim=0) > 0.99
    model, ids = load_model(tmp_path / "out"), torch.arange(1, 9)[None]
    (moe,) = [m for m in model.model.layers[1].mlp.experts.modules() if isinstance(m, MoE)]
    assert moe.swiglu_limit == model.config.swiglu_limit == 10.0
    original = AutoModelForCausalLM.from_pretrained(source("deepseek-v4"), dtype=torch.bfloat16)
    with torch.no_grad():
        close = nn.functional.cosine_similarity(model(ids).logits, original(ids).logits, dim=-1)
    assert close.mean() > 0.8


def _limited(gate, up, limit=7.0):
    return nn.functional.silu(gate.clamp(max=limit)) * up.clamp(-limit, limit)


@pytest.mark.parametrize(
    "function, gating",
    [
        (lambda gate, up: nn.functional.silu(gate) * up, (None, "silu")),
        (lambda gate, up: nn.functional.gelu(gate, approximate="tanh") * up, (None, "gelu_tanh")),
        (_limited, (7.0, "silu")),
        (lambda gate, up: nn.functional.gelu(gate) * up, None),
        (lambda gate, up: _limited(gate, up) + 1e-3 * gate, None),
        (lambda gate, up: nn.functional.silu(gate).clamp(max=7.0) * up.clamp(-7.0, 7.0), None),
    ],
)
def test_what_experts_compute_is_tried_out(function, gating):
    experts = SimpleNamespace(limit=7.0, _apply_gate=lambda both: function(*both.chunk(2, dim=-1)))
    if gating is None:
        with pytest.raises(ValueError, match="experts need silu or gelu_tanh .*, got another"):
            activation_of(experts)
    else:
        assert activation_of(experts) == gating


def test_tied_embeddings(tmp_path, source):
    folder = source("llama", tie_word_embeddings=True)
    assert "lm_head.weight" not in tensors_of(folder)
    convert(folder, tmp_path / "out", Options(), no_bar)
    model = load_model(tmp_path / "out")
    assert model.lm_head.weight is model.model.embed_tokens.weight
    assert torch.isfinite(model(torch.arange(1, 5)[None]).logits).all()


def test_a_tensor_of_another_model(tmp_path, source):
    convert(source("llama"), tmp_path / "out", Options(), no_bar)
    config = json.loads((tmp_path / "out" / "config.json").read_text())
    for change, message in (
        ({"num_hidden_layers": 1}, "layers.1.* needs to be "),
        ({"num_hidden_layers": 3}, "needs a tensor for model.layers.2"),
        ({"intermediate_size": 112}, r"needs a layer \[.*112.*\], as the model has, got"),
    ):
        (tmp_path / "out" / "config.json").write_text(json.dumps(config | change))
        with pytest.raises(ValueError, match=message):
            load_model(tmp_path / "out")


# 4-bit or 16-bit activations


def test_what_the_scheme_says_of_activations_runs(tmp_path, source):
    """W4A16 without input scales, W4A4 with them; an argument says otherwise."""
    text = tmp_path / "text.txt"
    text.write_text("once upon a time in the small village")
    convert(source("llama"), tmp_path / "alone", Options(), no_bar)
    convert(source("llama"), tmp_path / "both", Options(text=text), no_bar)
    for folder, activation, want, static in (
        ("alone", None, "bf16", False),
        ("alone", "nvfp4", "nvfp4", False),
        ("both", None, "nvfp4", True),
        ("both", "bf16", "bf16", False),
    ):
        model = load_model(tmp_path / folder, activation=activation)
        layers = [m for m in model.modules() if isinstance(m, Linear)]
        assert len(layers) == 14 and {layer.activation for layer in layers} == {want}
        assert {layer.input_global_scale is not None for layer in layers} == {static}
        assert torch.isfinite(model(torch.arange(1, 5)[None]).logits).all()
    with pytest.raises(ValueError, match="activation needs 'nvfp4', 'bf16' or None, got 'fp8'"):
        load_model(tmp_path / "alone", activation="fp8")


@pytest.mark.parametrize("format", ["modelopt", "compressed-tensors"])
def test_w4a16_experts_ran_w4a4(tmp_path, source, format):
    """Experts run what the scheme says, or what is asked for, and so do gated MLPs."""
    text = tmp_path / "text.txt"
    text.write_text("once upon a time in the small village")
    convert(source("mixtral"), tmp_path / "alone", Options(format), no_bar)
    convert(source("mixtral"), tmp_path / "both", Options(format, text=text), no_bar)
    for folder, activation, want, static in (
        ("alone", None, "bf16", False),
        ("alone", "nvfp4", "nvfp4", False),
        ("both", None, "nvfp4", True),
        ("both", "bf16", "bf16", False),
    ):
        model = load_model(tmp_path / folder, activation=activation)
        layers = [m for m in model.modules() if isinstance(m, MoE)]
        assert layers and {layer.activation_format for layer in layers} == {want}
        assert {layer.x_global_scale is not None for layer in layers} == {static}
        assert torch.isfinite(model(torch.arange(1, 5)[None]).logits).all()
    experts = "model.layers.0.block_sparse_moe.experts"
    for folder, activation, want, static in (
        ("alone", None, "bf16", False),
        ("both", None, "nvfp4", True),
        ("both", "bf16", "bf16", False),
    ):
        mlp = Checkpoint(tmp_path / folder, activation).swiglu_mlp(f"{experts}.0")
        assert mlp.activation_format == want and (mlp.h_global_scale is not None) == static
