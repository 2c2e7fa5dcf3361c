"""python -m nvfp4 convert, on small models of random weights: what is written, bit for bit, and
calibrated.
"""

import json
from importlib.util import find_spec

import pytest
import torch
from conversion import (
    PROMPT,
    as_bytes,
    by_hand,
    formats,
    models,
    no_bar,
    shared_scale,
    tensors_apart,
    tensors_of,
)
from safetensors import safe_open
from torch import nn
from transformers import AutoModelForCausalLM, AutoTokenizer
from typer.testing import CliRunner

import nvfp4
from nvfp4.checkpoints import MODELOPT, Checkpoint, load_model
from nvfp4.checkpoints.convert import Options, convert
from nvfp4.cli import app


@models
@formats
def test_bit_for_bit(tmp_path, source, name, format):
    """Each weight is what nvfp4.quantize_weight makes of it; the rest is what it was."""
    before = tensors_apart(source(name))
    summary = convert(source(name), tmp_path / "out", Options(format), no_bar)
    checkpoint = Checkpoint(tmp_path / "out")
    assert len(checkpoint.modules) == summary.quantized_layers
    after = tensors_of(tmp_path / "out")
    for module in checkpoint.modules:
        w = before.pop(f"{module}.weight")
        p = checkpoint.format.storable(shared_scale(tensors_apart(source(name)), module))
        want, got = nvfp4.quantize_weight(w, global_scale=p), checkpoint.weight(module)
        assert got.global_scale == p
        assert torch.equal(got.data, want.data)
        assert torch.equal(as_bytes(got.scales), as_bytes(want.linear_scales()))
        assert checkpoint.scheme.quantizes(module)
    assert before and all(torch.equal(after[rest], tensor) for rest, tensor in before.items())
    left = {rest.rpartition(".")[0] for rest, tensor in before.items() if tensor.dim() > 1}
    assert left - {"model.embed_tokens"} == set(checkpoint.scheme.ignore) and "lm_head" in left
    routers = {"lm_head", "gate", "router", "shared_expert_gate"}
    assert {each.rpartition(".")[2] for each in checkpoint.scheme.ignore} <= routers
    assert AutoTokenizer.from_pretrained(tmp_path / "out").tokenize("the sea") == ["the", "sea"]
    assert (tmp_path / "out" / "hf_quant_config.json").exists() == (format == MODELOPT.name)


@formats
@pytest.mark.parametrize("name", ["mixtral", "qwen3-moe"])
def test_experts_in_one_tensor_are_written_apart(tmp_path, source, name, format):
    """As engines know them: a model saved as transformers has it in memory gives the same files."""
    own = source(name, own_names=True)
    assert any(key.endswith("experts.gate_up_proj") for key in tensors_of(own))
    convert(own, tmp_path / "own", Options(format), no_bar)
    convert(source(name), tmp_path / "apart", Options(format), no_bar)
    one, other = tensors_of(tmp_path / "own"), tensors_of(tmp_path / "apart")
    assert one.keys() == other.keys()
    assert all(torch.equal(as_bytes(one[key]), as_bytes(other[key])) for key in one)


def test_each_its_own_scale(tmp_path, source):
    before = tensors_of(source("llama"))
    convert(source("llama"), tmp_path / "out", Options(separate_scales=True), no_bar)
    checkpoint = Checkpoint(tmp_path / "out")
    for module in checkpoint.modules:
        p = nvfp4.global_scale(before[f"{module}.weight"])
        assert checkpoint.weight(module).global_scale == p


@pytest.mark.parametrize(
    "pattern, left",
    [
        ("*.o_proj", {"self_attn.o_proj"}),
        ("*.0.mlp.down_proj", {"mlp.down_proj"}),
        ("self_attn", {f"self_attn.{part}_proj" for part in "qkvo"}),
        # Engines multiply by q, k and v as one.
        ("*.k_proj", {f"self_attn.{part}_proj" for part in "qkv"}),
    ],
)
def test_excluded(tmp_path, source, pattern, left):
    result = CliRunner().invoke(
        app,
        ["convert", str(source("llama")), str(tmp_path / "out"), "--exclude", pattern, "--json"],
    )
    assert result.exit_code == 0, result.output
    ignored = json.loads(result.stdout)["left_in_floats"]
    assert {name.split(".", 3)[-1] for name in ignored} == left | {"lm_head"}
    checkpoint = Checkpoint(tmp_path / "out")
    assert not set(checkpoint.modules) & set(ignored)
    before, after = tensors_of(source("llama")), tensors_of(tmp_path / "out")
    assert all(torch.equal(before[f"{each}.weight"], after[f"{each}.weight"]) for each in ignored)


@pytest.mark.parametrize("name, left", [("llama", "mlp.down_proj"), ("mixtral", "experts")])
def test_k_that_is_not_a_multiple_of_16(tmp_path, source, name, left):
    """Such layers stay in floats, and with one expert's all of them; the model still runs."""
    convert(source(name, intermediate_size=40), tmp_path / "out", Options(), no_bar)
    checkpoint = Checkpoint(tmp_path / "out")
    assert not any(left in module for module in checkpoint.modules)
    assert any(left in module for module in checkpoint.scheme.ignore)
    ids = torch.arange(1, 9)[None]
    model = AutoModelForCausalLM.from_pretrained(source(name, intermediate_size=40)).eval()
    with torch.no_grad():
        want = by_hand(model, lambda path: left in path)(ids).logits
        assert torch.equal(load_model(tmp_path / "out")(ids).logits, want)


@formats
def test_shards(tmp_path, source, format):
    convert(source("qwen3-moe"), tmp_path / "one", Options(format), no_bar)
    convert(source("qwen3-moe"), tmp_path / "many", Options(format, shard_size="20KB"), no_bar)
    one, many = tensors_of(tmp_path / "one"), tensors_of(tmp_path / "many")
    assert one.keys() == many.keys()
    assert all(torch.equal(as_bytes(one[key]), as_bytes(many[key])) for key in one)
    index = json.loads((tmp_path / "many" / "model.safetensors.index.json").read_text())
    assert index["metadata"]["total_size"] == sum(tensor.nbytes for tensor in one.values())
    files = sorted((tmp_path / "many").glob("*.safetensors"))
    assert {file.name for file in files} == set(index["weight_map"].values()) and len(files) > 3
    for file in files:
        with safe_open(file, "pt") as opened:
            names = list(opened.keys())
            assert {
                name for name, where in index["weight_map"].items() if where == file.name
            } == set(names)
            assert sum(opened.get_tensor(name).nbytes for name in names) <= 20_000
    assert Checkpoint(tmp_path / "many").modules


@pytest.mark.skipif(find_spec("compressed_tensors") is None, reason="needs compressed-tensors")
def test_compressed_tensors_reads_it_alike(tmp_path, source):
    """Its own decompression gives our values."""
    from compressed_tensors.compressors import BaseCompressor
    from compressed_tensors.quantization import QuantizationConfig

    convert(source("llama"), tmp_path / "out", Options("compressed-tensors"), no_bar)
    config = json.loads((tmp_path / "out" / "config.json").read_text())["quantization_config"]
    scheme = QuantizationConfig.model_validate(config).config_groups["group_0"]
    compressor = BaseCompressor.get_value_from_registry(config["format"])
    checkpoint, tensors = Checkpoint(tmp_path / "out"), tensors_of(tmp_path / "out")
    for module in checkpoint.modules:
        own = {
            name.rpartition(".")[2]: t
            for name, t in tensors.items()
            if name.startswith(f"{module}.")
        }
        got = compressor.decompress(own, scheme)["weight"]
        want = checkpoint.weight(module).dequantize(torch.float32)
        torch.testing.assert_close(got.float(), want, rtol=2**-7, atol=0)


# calibration


def _record(model, tokens):
    """What goes into every linear layer, by plain loops over experts."""
    seen: dict[str, float] = {}

    def see(path, x):
        seen[path] = max(seen.get(path, 0.0), x.abs().amax().item() if x.numel() else 0.0)

    def experts(path, module):
        def forward(x, ids, weights):
            out = torch.zeros_like(x)
            for t, (token, chosen) in enumerate(zip(x, ids, strict=True)):
                for j, e in enumerate(chosen.tolist()):
                    see(f"{path}", token)
                    if hasattr(module, "gate_up_proj_bias"):  # gpt-oss
                        both = token @ module.gate_up_proj[e] + module.gate_up_proj_bias[e]
                        gate, up = both[0::2].clamp(max=7), both[1::2].clamp(-7, 7)
                        h = gate * torch.sigmoid(1.702 * gate) * (up + 1)
                        y = h @ module.down_proj[e] + module.down_proj_bias[e]
                    else:
                        gate, up = (module.gate_up_proj[e] @ token).chunk(2)
                        h = nn.functional.silu(gate) * up
                        y = module.down_proj[e] @ h
                    see(f"{path}.{e}", h)
                    out[t] += weights[t, j] * y
            return out

        return forward

    for path, module in model.named_modules():
        if isinstance(module, nn.Linear):
            module.register_forward_pre_hook(lambda _, args, path=path: see(path, args[0]))
        elif path.endswith(".experts"):
            module.forward = experts(path, module)
    with torch.no_grad():
        model(tokens)
    return seen


@models
@formats
def test_calibrated(tmp_path, source, name, format):
    """Input scales are amax / 2688 of what the text makes of each layer's input, each expert's."""
    text = tmp_path / "text.txt"
    text.write_text(PROMPT)
    convert(source(name), tmp_path / "out", Options(format, text=text), no_bar)
    checkpoint = Checkpoint(tmp_path / "out")
    assert all(group.calibrated for group in checkpoint.scheme.groups)
    model = AutoModelForCausalLM.from_pretrained(source(name), dtype=torch.bfloat16)
    ids = AutoTokenizer.from_pretrained(source(name))(PROMPT, return_tensors="pt")["input_ids"]
    seen = _record(model, ids)
    for module in checkpoint.modules:
        path = module.replace("block_sparse_moe", "mlp")
        if ".experts." in module:
            all_of, _, rest = path.partition(".experts.")
            expert, leaf = rest.split(".")
            largest = max(v for k, v in seen.items() if k.startswith(f"{all_of}.experts."))
            if leaf in ("down_proj", "w2"):
                amax = seen.get(f"{all_of}.experts.{expert}", largest)
            else:
                amax = seen[f"{all_of}.experts"]
        else:
            amax = seen[path]
        p = checkpoint.input_global_scale(module)
        assert p is not None and p.item() == pytest.approx(amax / 2688, rel=2**-5), module


def test_an_expert_that_no_token_went_to(tmp_path, source):
    """It gets the largest scale of the others: any is better than none."""
    text = tmp_path / "text.txt"
    text.write_text("sea")
    convert(source("mixtral"), tmp_path / "out", Options(text=text), no_bar)
    moe = Checkpoint(tmp_path / "out").moe("model.layers.0.block_sparse_moe.experts")
    scales = moe.h_global_scale
    assert scales.unique().numel() == 2 and (scales == scales.amax()).sum() == 3
