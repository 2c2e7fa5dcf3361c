"""load_model takes a checkpoint's tensors as transformers' from_pretrained does, or names the one
that it cannot take.
"""

import re
import shutil

import pytest
import torch
from checkpoint_files import save_model
from conversion import no_bar, tensors_of
from safetensors.torch import save_file
from transformers import AutoModelForCausalLM

import nvfp4
from nvfp4.checkpoints import load_model
from nvfp4.checkpoints.convert import Options, convert
from nvfp4.checkpoints.inspect import inspect
from nvfp4.layers import Linear, MoE


def _rewrite(folder, change):
    tensors = {name: tensor.clone() for name, tensor in tensors_of(folder).items()}
    change(tensors)
    save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})
    return folder


def _copy(folder, to, change):
    shutil.copytree(folder, to)
    return _rewrite(to, change)


# what stays in floats


def _finer_than_bfloat16(tensors):
    for name, tensor in tensors.items():
        if tensor.dim() < 2 and tensor.is_floating_point():
            tensors[name] = 1 + torch.rand(tensor.shape)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float32], ids=str)
@pytest.mark.filterwarnings("ignore:.*stay in floats")
@pytest.mark.parametrize(
    "name, kept, in_bfloat16",
    [
        ("deepseek-v3", "e_score_correction_bias", torch.float32),
        ("deepseek-v4", "sinks", torch.float32),
        ("gpt-oss", "input_layernorm", torch.bfloat16),  # kept for float16 alone
    ],
    ids=["deepseek-v3", "deepseek-v4", "gpt-oss"],
)
def test_float32_tensors_are_not_rounded(tmp_path, source, name, kept, in_bfloat16, dtype):
    """A class keeps some tensors in float32 for any dtype, others for float16 alone."""
    floats = _copy(source(name), tmp_path / "floats", _finer_than_bfloat16)
    convert(floats, tmp_path / "out", Options(), no_bar)
    theirs = AutoModelForCausalLM.from_pretrained(floats, dtype=dtype)
    ours = load_model(tmp_path / "out", dtype=dtype, activation="nvfp4")
    packed = [p for p, m in ours.named_modules() if isinstance(m, Linear | MoE)]
    want = dict(theirs.named_parameters()) | dict(theirs.named_buffers())
    got = dict(ours.named_parameters()) | dict(ours.named_buffers())
    same = {n for n in got if not any(n.startswith(f"{path}.") for path in packed)}
    assert same == {n for n in want if n in same} and len(same) > 10
    for each in same:
        assert got[each].dtype == want[each].dtype, each
        assert torch.equal(got[each], want[each]), each
    dtypes = {got[each].dtype for each in same if kept in each}
    assert dtypes == {in_bfloat16 if dtype == torch.bfloat16 else torch.float32}


def test_a_missing_buffer(tmp_path, source):
    """It has a value from the start, which is not the checkpoint's."""
    convert(source("deepseek-v3"), tmp_path / "out", Options(), no_bar)
    name = "model.layers.1.mlp.gate.e_score_correction_bias"
    _rewrite(tmp_path / "out", lambda tensors: tensors.pop(name))
    with pytest.raises(ValueError, match=f"needs a tensor for {re.escape(name)}, got none"):
        load_model(tmp_path / "out", activation="nvfp4")


@pytest.mark.filterwarnings("ignore:.*stay in floats")
@pytest.mark.parametrize("parts", [("w1", "w2", "w3"), ("w3",)])
def test_a_missing_expert_in_floats(tmp_path, source, parts):
    """All experts stay in floats: K is not a multiple of 16."""
    convert(source("mixtral", intermediate_size=40), tmp_path / "out", Options(), no_bar)
    experts = "model.layers.1.block_sparse_moe.experts"
    _rewrite(tmp_path / "out", lambda t: [t.pop(f"{experts}.1.{part}.weight") for part in parts])
    with pytest.raises(ValueError, match=r"layers\.1\..*(cannot be made of|needs a layer)"):
        load_model(tmp_path / "out")


# a head of its own under a tied configuration


def _with_head(folder, to, **tensors):
    return _copy(folder, to, lambda t: t.update(tensors))


def test_a_head_of_its_own_under_a_tied_configuration(tmp_path, source):
    tied = source("llama", tie_word_embeddings=True)
    embedding = tensors_of(tied)["model.embed_tokens.weight"]
    head = torch.randn_like(embedding)
    floats = _with_head(tied, tmp_path / "floats", **{"lm_head.weight": head})
    convert(floats, tmp_path / "out", Options(), no_bar)
    model = load_model(tmp_path / "out")
    model.tie_weights()  # as transformers does again when it resizes the vocabulary
    theirs = AutoModelForCausalLM.from_pretrained(floats)
    assert torch.equal(model.lm_head.weight, head) and torch.equal(theirs.lm_head.weight, head)
    assert torch.equal(model.model.embed_tokens.weight, embedding)


@pytest.mark.parametrize("there", ["lm_head.weight", "model.embed_tokens.weight"])
def test_one_of_two_tied_tensors(tmp_path, source, there):
    convert(source("llama", tie_word_embeddings=True), tmp_path / "out", Options(), no_bar)
    weight = tensors_of(tmp_path / "out")["model.embed_tokens.weight"]
    _rewrite(
        tmp_path / "out",
        lambda t: t.update({there: t.pop("model.embed_tokens.weight")}),
    )
    model = load_model(tmp_path / "out")
    assert model.lm_head.weight is model.model.embed_tokens.weight
    assert torch.equal(model.lm_head.weight, weight) and model.config.tie_word_embeddings


def test_an_nvfp4_head_under_a_tied_configuration(tmp_path, source):
    convert(source("llama", tie_word_embeddings=True), tmp_path / "out", Options(), no_bar)
    embedding = tensors_of(tmp_path / "out")["model.embed_tokens.weight"]
    q = nvfp4.quantize(torch.randn(embedding.shape), scale_layout="linear")
    head = {"weight": q.data, "weight_scale": q.scales, "weight_scale_2": q.global_scale}
    _rewrite(tmp_path / "out", lambda t: t.update({f"lm_head.{k}": v for k, v in head.items()}))
    model = load_model(tmp_path / "out")
    assert isinstance(model.lm_head, Linear) and torch.equal(model.lm_head.weight, q.data)
    assert torch.equal(model.model.embed_tokens.weight, embedding)
    assert torch.isfinite(model(torch.arange(1, 5)[None]).logits).all()
    _rewrite(tmp_path / "out", lambda t: t.pop("model.embed_tokens.weight"))
    with pytest.raises(ValueError, match="needs a tensor for model.embed_tokens.weight, got none"):
        load_model(tmp_path / "out")


# a quantized layer's tensors

Q, K, V, O = (f"model.layers.0.self_attn.{part}_proj" for part in "qkvo")  # noqa: E741
NOT_ONE = "needs to be one of the tensors of a modelopt layer"
NOT_FINITE = "needs finite values, got NaN or Inf"
NAN, INF = float("nan"), float("inf")
UNNOTICED = {
    # what: (the tensor, what it becomes (None: it goes), the error, whether the files show it)
    "no bias": (f"{Q}.bias", None, "needs the tensor {}, got none", False),
    "a bias that the model has not": (
        f"{O}.bias",
        torch.randn(64).bfloat16(),
        "{} in .* needs to be one of the model's, which has no bias there",
        False,
    ),
    "GPTQ's order": (f"{O}.weight_g_idx", torch.arange(64).int(), "{} in .* " + NOT_ONE, True),
    "SVDQuant": (
        f"{O}.svdquant_lora_a",
        torch.randn(8, 64).bfloat16(),
        "{} in .* " + NOT_ONE,
        True,
    ),
    "the other format's name": (
        f"{O}.weight_packed",
        torch.zeros(64, 32, dtype=torch.uint8),
        "{} in .* " + NOT_ONE,
        True,
    ),
    "NaN in a bias": (f"{Q}.bias", torch.full((64,), NAN), "{} in .* " + NOT_FINITE, True),
    "Inf in AWQ's factors": (
        f"{Q}.pre_quant_scale",
        torch.full((64,), INF),
        "{} in .* " + NOT_FINITE,
        True,
    ),
    "too few of AWQ's factors": (
        f"{Q}.pre_quant_scale",
        torch.ones(32),
        r"{} in .* needs shape \[64\], got \[32\]",
        True,
    ),
    "a long bias": (f"{Q}.bias", torch.ones(65), r"{} in .* needs shape \[64\], got \[65\]", True),
}


@pytest.fixture(scope="module")
def with_biases(tmp_path_factory):
    """Qwen2-MoE: biases of q, k and v."""
    root = tmp_path_factory.mktemp("qwen2-moe")
    torch.manual_seed(0)
    floats = save_model(root / "floats", "qwen2-moe", num_hidden_layers=1)
    convert(floats, root / "out", Options(), no_bar)
    return root / "out"


@pytest.mark.parametrize("name, becomes, error, shown", UNNOTICED.values(), ids=UNNOTICED)
def test_a_quantized_layers_tensor_does_not_pass_unnoticed(
    tmp_path, with_biases, name, becomes, error, shown
):
    def change(tensors):
        tensors.pop(name, None)
        if becomes is not None:
            tensors[name] = becomes

    folder = _copy(with_biases, tmp_path / "out", change)
    with pytest.raises(ValueError, match=error.replace("{}", re.escape(name))):
        load_model(folder, activation="nvfp4")
    found = inspect(folder, no_bar)
    damaged = {finding.module for finding in found.findings if finding.kind == "damage"}
    assert damaged == ({name.rpartition(".")[0]} if shown else set())


def test_inspect_notes_a_bias_that_siblings_have(tmp_path, with_biases):
    folder = _copy(with_biases, tmp_path / "out", lambda tensors: tensors.pop(f"{Q}.bias"))
    found = [finding for finding in inspect(folder, no_bar).findings if finding.module == Q]
    assert [finding.what for finding in found] == [
        "no bias, though k_proj, v_proj beside it have one"
    ]
    assert not inspect(with_biases, no_bar).findings


def test_scales_of_a_key_value_cache_are_passed_over(tmp_path, with_biases):
    scale = torch.ones(1)
    folder = _copy(with_biases, tmp_path / "out", lambda t: t.update({f"{K}.k_scale": scale}))
    load_model(folder, activation="nvfp4")


def test_other_names_of_scales(tmp_path, source):
    """weight_scale_inv and input_scale_2 are read as weight_scale and input_scale are."""
    text = tmp_path / "text.txt"
    text.write_text("once upon a time in the small village")
    convert(source("llama"), tmp_path / "out", Options(text=text), no_bar)
    want = load_model(tmp_path / "out")(torch.arange(1, 9)[None]).logits

    def rename(tensors):
        for name in list(tensors):
            if name.endswith(".weight_scale"):
                tensors[f"{name}_inv"] = tensors.pop(name)
            elif name.endswith(".input_scale"):
                tensors[f"{name}_2"] = tensors.pop(name)

    folder = _copy(tmp_path / "out", tmp_path / "renamed", rename)
    assert torch.equal(load_model(folder)(torch.arange(1, 9)[None]).logits, want)
    assert not inspect(folder, no_bar).findings
