"""The demo on a small random model of the same architecture, end to end; and on the real one where
it is installed.
"""

import json
from functools import cache
from importlib.util import find_spec

import pytest
import torch
from typer.testing import CliRunner

from nvfp4.cli import app
from nvfp4.demo.model import WEIGHTS_PACKAGE

MISSING = [name for name in ("transformers", "gguf", "accelerate") if find_spec(name) is None]
needs_transformers = pytest.mark.skipif(
    bool(MISSING), reason=f"needs the packages {', '.join(MISSING)}"
)


@pytest.fixture
def small_model(tmp_path):
    """A Llama of random weights in a Hugging Face folder, with a word tokenizer."""
    from tokenizers import Tokenizer, models, pre_tokenizers
    from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

    words = sorted(
        set(
            [
                "once",
                "upon",
                "a",
                "time",
                "in",
                "small",
                "village",
                "by",
                "the",
                "sea",
                "there",
                "lived",
                "alice",
                "rabbit",
                "was",
                "and",
                "of",
                "to",
            ]
        )
    )
    tokenizer = Tokenizer(
        models.WordLevel({w: i for i, w in enumerate(["<unk>", *words])}, unk_token="<unk>")
    )
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, unk_token="<unk>", pad_token="<unk>"
    ).save_pretrained(tmp_path)
    config = LlamaConfig(
        vocab_size=len(words) + 1, hidden_size=48, intermediate_size=80, num_hidden_layers=2,
        num_attention_heads=3, num_key_value_heads=1,
        pad_token_id=0, bos_token_id=0, eos_token_id=0,
    )  # fmt: skip
    LlamaForCausalLM(config).save_pretrained(tmp_path)
    return tmp_path


@needs_transformers
def test_demo(small_model):
    result = CliRunner().invoke(
        app,
        ["demo", "--model", str(small_model), "--max-tokens", "64", "--new-tokens", "3", "--json"],
    )
    assert result.exit_code == 0, result.output
    report = json.loads(result.stdout)
    assert report["layers"] == 14 and report["tokens"] == 64
    assert 0.95 < report["cosine_worst"] <= report["cosine_median"] < 1
    assert report["perplexity_nvfp4"] == pytest.approx(report["perplexity_bf16"], rel=0.2)
    assert report["perplexity_nvfp4"] != report["perplexity_bf16"]
    # 4 bits and a scale byte per 16: at least 4.5 bits a weight against 16, plus padding to 128
    # rows.
    assert report["linear_bytes_nvfp4"] > report["linear_bytes_bf16"] * 4.5 / 16
    assert set(report["backends"]) == {"quantize_dynamic", "mm"}


@pytest.mark.emulated
@pytest.mark.compiles
@needs_transformers
def test_demo_on_an_emulated_gpu(small_model):
    arguments = ["demo", "--model", str(small_model), "--max-tokens", "4", "--new-tokens", "1"]
    emulated, plain = (
        CliRunner().invoke(app, [*arguments, *options, "--json"])
        for options in (["--emulate", "sm_89"], ["--backend", "reference"])
    )
    assert emulated.exit_code == 0, emulated.output
    report = json.loads(emulated.stdout)
    assert report["device"].endswith("emulated sm_89")
    assert report["backends"] == {"quantize_dynamic": "triton", "mm": "triton"}
    expected = json.loads(plain.stdout)["perplexity_nvfp4"]
    assert report["perplexity_nvfp4"] == pytest.approx(expected, rel=1e-2)


@pytest.fixture
def read_once(monkeypatch):
    """The GGUF file and its names of tensors are parsed once, and not for each part of a model."""
    import gguf

    for name in ("GGUFReader", "get_tensor_name_map"):
        monkeypatch.setattr(gguf, name, cache(getattr(gguf, name)))


@pytest.mark.slow
@needs_transformers
@pytest.mark.skipif(
    find_spec(WEIGHTS_PACKAGE) is None, reason=f"needs the package {WEIGHTS_PACKAGE}"
)
def test_demo_on_the_real_model(read_once):
    result = CliRunner().invoke(app, ["demo", "--max-tokens", "96", "--new-tokens", "2", "--json"])
    assert result.exit_code == 0, result.output
    report = json.loads(result.stdout)
    assert (
        report["layers"] == 210 and report["cosine_median"] > 0.99 and report["cosine_worst"] > 0.96
    )
    assert report["perplexity_bf16"] < report["perplexity_nvfp4"] < 2.5 * report["perplexity_bf16"]
    assert report["linear_bytes_nvfp4"] < 0.3 * report["linear_bytes_bf16"]
    assert torch.isfinite(torch.tensor(report["perplexity_nvfp4"]))
