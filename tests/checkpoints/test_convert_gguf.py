"""python -m nvfp4 convert, of a GGUF file."""

import json
import re

import pytest
import torch
from checkpoint_files import WORDS
from conversion import as_bytes, names_in, no_bar, tensors_of
from transformers import AutoTokenizer
from typer.testing import CliRunner

from nvfp4.checkpoints import load_model
from nvfp4.checkpoints.convert import Options, convert
from nvfp4.cli import app


def _write_gguf(folder, path, arch):
    """The model of a Hugging Face folder as llama.cpp has it: its names, its order of q's and k's
    rows, a block's experts in three tensors; gated MLPs in 8 bits.
    """
    import gguf

    config = json.loads((folder / "config.json").read_text())
    heads, kv_heads = config["num_attention_heads"], config["num_key_value_heads"]
    writer = gguf.GGUFWriter(path, gguf.MODEL_ARCH_NAMES[arch])
    writer.add_name("small")
    writer.add_block_count(config["num_hidden_layers"])
    writer.add_context_length(128)
    writer.add_embedding_length(config["hidden_size"])
    writer.add_feed_forward_length(config["intermediate_size"])
    writer.add_head_count(heads)
    writer.add_head_count_kv(kv_heads)
    writer.add_layer_norm_rms_eps(1e-6)
    writer.add_rope_freq_base(10000.0)
    if arch is gguf.MODEL_ARCH.QWEN3MOE:
        writer.add_expert_count(config.get("num_experts", config.get("num_local_experts")))
        writer.add_expert_used_count(config["num_experts_per_tok"])
        writer.add_expert_feed_forward_length(config["moe_intermediate_size"])
        writer.add_key_length(config["head_dim"])
        writer.add_value_length(config["head_dim"])
    words = ["<unk>", *WORDS[:-3], "t", "h", "th"]
    writer.add_tokenizer_model("gpt2")
    writer.add_token_list(words)
    writer.add_token_types([1] * len(words))
    writer.add_token_merges(["t h"])
    for token in ("bos", "eos", "unk", "pad"):
        getattr(writer, f"add_{token}_token_id")(0)
    names = gguf.get_tensor_name_map(arch, config["num_hidden_layers"])
    for tensor, values in _stacked(tensors_of(folder)).items():
        values = values.float()
        for leaf, count in (("q_proj", heads), ("k_proj", kv_heads)):
            if leaf in tensor and arch is gguf.MODEL_ARCH.LLAMA:
                halves = values.view(count, 2, -1, values.shape[-1])
                values = halves.transpose(1, 2).reshape(values.shape)
        own = names.get_name(tensor.removesuffix(".weight")) + ".weight"
        kinds = gguf.GGMLQuantizationType
        kind = kinds.Q8_0 if "_proj" in tensor and values.shape[-1] % 32 == 0 else kinds.F32
        if "q_proj" in tensor:  # whose rows' order is looked at
            kind = kinds.F32
        writer.add_tensor(own, gguf.quantize(values.numpy(), kind), raw_dtype=kind)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path


def _stacked(tensors):
    """Experts' layers in one tensor: experts.{e}.gate_proj -> experts.gate_proj [E, N, K]."""
    found: dict[str, list] = {}
    for name in sorted(tensors):
        found.setdefault(re.sub(r"experts\.\d+", "experts", name), []).append(tensors[name])
    return {name: torch.stack(t) if len(t) > 1 else t[0] for name, t in found.items()}


@pytest.mark.parametrize(
    "name, arch, options",
    [
        ("llama", "LLAMA", {}),
        # The one size that transformers takes a GGUF's experts to have.
        ("qwen3-moe", "QWEN3MOE", {"moe_intermediate_size": 768}),
    ],
)
def test_gguf(tmp_path, source, name, arch, options):
    """The same bits as from the model that transformers makes of the GGUF."""
    import gguf

    from nvfp4.checkpoints.float_model import load_float_model

    file = _write_gguf(source(name, **options), tmp_path / "small.gguf", gguf.MODEL_ARCH[arch])
    result = CliRunner().invoke(app, ["convert", str(file), str(tmp_path / "out")])
    assert result.exit_code == 0, result.output
    model, _ = load_float_model(file, "cpu")
    original = tensors_of(source(name, **options))["model.layers.1.self_attn.q_proj.weight"]
    assert torch.equal(model.model.layers[1].self_attn.q_proj.weight, original)
    model.save_pretrained(tmp_path / "floats")
    convert(tmp_path / "floats", tmp_path / "want", Options(), no_bar)
    got, want = tensors_of(tmp_path / "out"), tensors_of(tmp_path / "want")
    assert got.keys() == want.keys()
    assert all(torch.equal(as_bytes(got[key]), as_bytes(want[key])) for key in want)
    assert load_model(tmp_path / "out").config.architectures == [type(model).__name__]
    assert AutoTokenizer.from_pretrained(tmp_path / "out").convert_tokens_to_ids("sea") > 0


@pytest.mark.parametrize("keep", [20, 500, -100])
def test_a_gguf_cut_short(tmp_path, source, keep):
    import gguf

    file = _write_gguf(source("llama"), tmp_path / "small.gguf", gguf.MODEL_ARCH.LLAMA)
    file.write_bytes(file.read_bytes()[:keep])
    result = CliRunner().invoke(app, ["convert", str(file), str(tmp_path / "out")])
    assert result.exit_code == 2 and f"{file} needs to be a whole GGUF file" in result.stderr
    assert names_in(tmp_path) == ["small.gguf"]
