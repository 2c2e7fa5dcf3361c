"""convert --method: what each method writes, and that folded factors leave the model as it was."""

import json
from itertools import cycle

import pytest
import torch
from conversion import PROMPT, by_hand, no_bar, tensors_of
from transformers import AutoModelForCausalLM
from typer.testing import CliRunner

from nvfp4.checkpoints import FORMATS, Checkpoint, load_model
from nvfp4.checkpoints.convert import REPORT_FILE, Options, convert
from nvfp4.checkpoints.plan import METHODS
from nvfp4.cli import app
from nvfp4.quantization.errors import relative

LONG = " ".join([PROMPT, *reversed(PROMPT.split())] * 8)


@pytest.fixture
def text(tmp_path):
    path = tmp_path / "text.txt"
    path.write_text(LONG)
    return path


@pytest.mark.parametrize(
    "method, format",
    list(zip([name for name in METHODS if name != "rtn"], cycle(FORMATS), strict=False)),
)
def test_each_method_is_better_than_rounding(tmp_path, source, text, method, format):
    options = Options(format, text=text, method=method)
    summary = convert(source("llama"), tmp_path / "out", options, no_bar)
    errors = summary.median_errors
    what = "output" if METHODS[method].needs_text else "weight"
    assert errors[what] < errors[f"{what}_rtn"] * 0.97
    report = json.loads((tmp_path / "out" / REPORT_FILE).read_text())
    assert len(report["layers"]) == summary.quantized_layers == 14
    checkpoint = Checkpoint(tmp_path / "out")
    for part in ("self_attn.{}_proj", "mlp.{}_proj"):
        fused = [
            checkpoint.weight(f"model.layers.1.{part.format(each)}")
            for each in (("q", "k", "v") if "attn" in part else ("gate", "up"))
        ]
        assert len({w.global_scale.item() for w in fused}) == 1
    assert all(checkpoint.input_global_scale(m) is not None for m in checkpoint.modules)
    ids = torch.arange(1, 9)[None]
    model = AutoModelForCausalLM.from_pretrained(source("llama"), dtype=torch.bfloat16).eval()
    with torch.no_grad():
        want = model(ids).logits.float()
        got = load_model(tmp_path / "out", activation="bf16")(ids).logits.float()
        rtn = by_hand(model)(ids).logits.float()
    assert relative(got, want) < 1.2 * relative(rtn, want)


@pytest.mark.parametrize("name", ["llama", "qwen3-moe"])
def test_factors_cancel(tmp_path, source, text, name, monkeypatch):
    """A model whose weights are folded, but not rounded, computes what it did."""
    from nvfp4.checkpoints import layerwise

    folded: dict[str, torch.Tensor] = {}
    original = layerwise.Layerwise._quantize

    def kept(self, group, result):
        folded.update(zip(group.modules, group.weights, strict=True))
        return original(self, group, result)

    monkeypatch.setattr(layerwise.Layerwise, "_quantize", kept)
    # A search may find that no factors are best. These are never the best.
    some = lambda x, w, outputs, tie: tie(torch.linspace(0.5, 2, w.shape[1]))  # noqa: E731
    monkeypatch.setattr(layerwise, "search_factors", some)
    options = Options(text=text, method="awq")
    convert(source(name), tmp_path / "out", options, no_bar)
    before, after = tensors_of(source(name)), tensors_of(tmp_path / "out")
    # v, o, up and down are folded too: the weights show it.
    linears = [m for m in folded if not torch.equal(folded[m], before[f"{m}.weight"].float())]
    assert {m.rpartition(".")[2] for m in linears} >= {"q_proj", "v_proj", "o_proj"}
    norms = [n for n in before if n.endswith("layernorm.weight")]
    changed = [n for n in norms if not torch.equal(before[n], after[n])]
    # A mixture's norm also feeds the router, so its experts' factors are not folded there.
    assert changed == (norms if name == "llama" else [n for n in norms if "input" in n])
    model = AutoModelForCausalLM.from_pretrained(source(name), dtype=torch.float32).eval()
    ids = torch.arange(1, 9)[None]
    with torch.no_grad():
        want = model(ids).logits
        state = model.state_dict()
        for n in changed:
            state[n].copy_(after[n])
        for module, w in folded.items():
            if f"{module}.weight" in state:
                state[f"{module}.weight"].copy_(w)
        torch.testing.assert_close(model(ids).logits, want, rtol=1e-4, atol=1e-4)


def test_an_expert_that_few_tokens_reach(tmp_path, source):
    """It is quantized by mse, and the summary says so."""
    text = tmp_path / "text.txt"
    text.write_text(PROMPT)
    summary = convert(
        source("mixtral"), tmp_path / "out", Options(text=text, method="gptq"), no_bar
    )
    assert len(summary.notes) == 2 * 4 * 3 + 2 * 4  # all layers: the text is that short
    assert "experts.0.w1: " in summary.notes[0] or any("experts" in n for n in summary.notes)
    assert all("quantized by mse" in note for note in summary.notes)
    mse = tmp_path / "mse"
    convert(source("mixtral"), mse, Options(text=text, method="mse"), no_bar)
    one, other = Checkpoint(tmp_path / "out"), Checkpoint(mse)
    module = "model.layers.0.block_sparse_moe.experts.1.w2"
    assert module in one.modules
    assert torch.equal(one.weight(module).data, other.weight(module).data)


def test_experts_by_the_tokens_that_reach_them(tmp_path, source, text):
    text.write_text(" ".join([LONG] * 2))
    summary = convert(
        source("qwen3-moe"), tmp_path / "out", Options(text=text, method="gptq"), no_bar
    )
    report = json.loads((tmp_path / "out" / REPORT_FILE).read_text())
    experts = [e for e in report["layers"] if ".experts." in e["layer"] and not e["note"]]
    assert experts and all(e["output"] < e["output_rtn"] for e in experts)
    tokens = {e["tokens"] for e in experts}
    assert len(tokens) > 1
    assert summary.median_errors["output"] < summary.median_errors["output_rtn"]
    load_model(tmp_path / "out")


@pytest.mark.parametrize(
    "options, said",
    [
        (
            ["--method", "best"],
            "--method needs one of rtn, four_over_six, mse, gptq, awq, awq+gptq",
        ),
        (["--method", "gptq"], "--method gptq needs --calibrate TEXT, got none"),
        (["--activation", "int8"], "--activation needs nvfp4 or bf16, got 'int8'"),
    ],
)
def test_bad_options(tmp_path, source, options, said):
    result = CliRunner().invoke(
        app, ["convert", str(source("llama")), str(tmp_path / "out"), *options]
    )
    assert result.exit_code == 2 and said in result.output


def test_calibrated_weights_alone(tmp_path, source, text):
    """W4A16 by a method that needs a text, and W4A4 with a scale per token without one."""
    convert(
        source("llama"),
        tmp_path / "a",
        Options(text=text, activation="bf16", method="gptq"),
        no_bar,
    )
    weights_alone = Checkpoint(tmp_path / "a")
    module = weights_alone.modules[0]
    assert weights_alone.activation_of(module) == "bf16"
    assert weights_alone.input_global_scale(module) is None
    convert(source("llama"), tmp_path / "b", Options(activation="nvfp4"), no_bar)
    dynamic = Checkpoint(tmp_path / "b")
    assert dynamic.input_global_scale(module) is None
