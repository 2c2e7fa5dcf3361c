"""from_pretrained and save_pretrained of transformers, with nvfp4.transformers imported."""

import json

import pytest
import torch
from checkpoint_files import WORDS
from conversion import no_bar
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM
from transformers.quantizers import auto

from nvfp4 import transformers as nvfp4_transformers
from nvfp4.checkpoints import load_model, save_model
from nvfp4.checkpoints.convert import Options, convert
from nvfp4.layers import Linear, MoE
from nvfp4.transformers import NvFp4Config

IDS = torch.arange(1, 13)[None] % len(WORDS)


def from_pretrained(folder, **options):
    return AutoModelForCausalLM.from_pretrained(folder, dtype=torch.bfloat16, **options)


def logits(model):
    with torch.no_grad():
        return model(IDS).logits


@pytest.fixture
def converted(tmp_path, source):
    convert(source("llama"), tmp_path / "out", Options(), no_bar)
    return tmp_path / "out"


@pytest.mark.parametrize("name", ["llama", "qwen3-moe", "deepseek-v4", "gpt-oss"])
def test_a_checkpoint_is_loaded_as_load_model_does_and_saved(tmp_path, source, name):
    convert(source(name), tmp_path / "out", Options(shard_size="30KB"), no_bar)
    want = logits(load_model(tmp_path / "out"))
    model, found = from_pretrained(tmp_path / "out", output_loading_info=True)
    assert not found["missing_keys"] and not found["unexpected_keys"]
    assert torch.equal(logits(model), want)
    assert model.generate(IDS, max_new_tokens=3, do_sample=False).shape[1] <= 15
    model.save_pretrained(tmp_path / "again")
    assert torch.equal(logits(from_pretrained(tmp_path / "again")), want)
    assert torch.equal(logits(load_model(tmp_path / "again")), want)


def test_a_model_is_quantized_while_it_is_loaded(tmp_path, source):
    config = NvFp4Config(exclude=["*.q_proj"], activation="bf16")
    model = from_pretrained(source("qwen3-moe"), quantization_config=config)
    attention = model.model.layers[0].self_attn
    assert type(attention.q_proj) is torch.nn.Linear and attention.k_proj.activation == "bf16"
    assert type(model.lm_head) is torch.nn.Linear
    experts = [layer for layer in model.modules() if isinstance(layer, MoE)]
    assert [layer.activation_format for layer in experts] == ["bf16", "bf16"]
    want = logits(model)
    model.save_pretrained(tmp_path / "saved")
    save_model(model, tmp_path / "other", "compressed-tensors")
    for folder in ("saved", "other"):
        again = load_model(tmp_path / folder)
        assert torch.equal(logits(again), want)
        kinds = [layer.activation for layer in again.modules() if isinstance(layer, Linear)]
        assert set(kinds) == {"bf16"}


def test_a_folder_whose_scheme_is_apart_is_no_model_in_floats(converted):
    """Older ModelOpt wrote hf_quant_config.json alone, which transformers does not know."""
    want = logits(load_model(converted))
    config = json.loads((converted / "config.json").read_text())
    del config["quantization_config"]
    (converted / "config.json").write_text(json.dumps(config))
    model = from_pretrained(converted, quantization_config=NvFp4Config())
    assert torch.equal(logits(model), want)


def test_a_damaged_tensor_is_named(converted):
    tensors = load_file(converted / "model.safetensors")
    name = "model.layers.1.mlp.up_proj.weight_scale"
    tensors[name].view(torch.uint8)[0, 0] = 0x7F
    save_file(tensors, converted / "model.safetensors", {"format": "pt"})
    with pytest.raises(ValueError, match=f"{name} in .*NaN"):
        from_pretrained(converted)


def test_a_model_was_split_over_devices_before_it_had_its_layers(converted):
    with pytest.raises(ValueError, match="needs one device in device_map, got"):
        from_pretrained(converted, device_map={"model": "cpu", "lm_head": "disk"})


def test_a_quantizer_that_transformers_has_itself_is_left_alone(monkeypatch):
    theirs = auto.AUTO_QUANTIZER_MAPPING["modelopt"]
    with pytest.warns(UserWarning, match="has a quantizer of its own for 'modelopt'"):
        assert not nvfp4_transformers.register()
    monkeypatch.delitem(auto.AUTO_QUANTIZER_MAPPING, "modelopt")
    monkeypatch.delitem(auto.AUTO_QUANTIZATION_CONFIG_MAPPING, "modelopt")
    assert nvfp4_transformers.register()
    assert auto.AUTO_QUANTIZER_MAPPING["modelopt"] is theirs
