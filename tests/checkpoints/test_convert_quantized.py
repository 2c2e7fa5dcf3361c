"""Sources in FP8 blocks, MXFP4 and INT4, which many makers publish and nothing else: convert reads
them as floats.
"""

import json
import shutil

import pytest
import torch
from conversion import PROMPT, as_bytes, no_bar, tensors_of
from safetensors.torch import save_file
from stored_forms import int4, mxfp4, per_block

from nvfp4.checkpoints.convert import Options, convert


def _with_ue8m0(form):
    """DeepSeek-V4's own names: the scales are "scale", powers of two."""

    def stored(w):
        tensors, floats = form(w)
        (leaf,) = [leaf for leaf in tensors if "scale" in leaf]
        scale = tensors.pop(leaf)
        if scale.dtype == torch.float32:
            rounded = scale.to(torch.float8_e8m0fnu)
            codes = tensors["weight"].float()
            floats = (
                codes.double()
                * rounded.double()
                .repeat_interleave(128, 0)
                .repeat_interleave(128, 1)[: w.shape[0], : w.shape[1]]
            )
            return tensors | {"scale": rounded}, floats
        data = tensors["weight"].view(torch.int8)
        return {"weight": data, "scale": scale.view(torch.float8_e8m0fnu)}, floats

    return stored


SOURCES = {
    # a model: the forms of its experts and of its other layers, and what its configuration says
    "deepseek-v3": (per_block, per_block, {"quant_method": "fp8", "weight_block_size": [128, 128]}),
    "qwen3-moe": (int4, None, {"quant_method": "compressed-tensors", "format": "pack-quantized"}),
    "deepseek-v4": (_with_ue8m0(mxfp4), _with_ue8m0(per_block), {"quant_method": "fp8"}),
}


def _quantized(floats, folder, experts, others, config, dequantized):
    """A copy of a model with its linear layers in those forms, and one of what they are."""
    shutil.copytree(floats, folder)
    shutil.copytree(floats, dequantized)
    tensors, plain = {}, {}
    for name, tensor in tensors_of(floats).items():
        module = name.removesuffix(".weight")
        layer = name.endswith(".weight") and tensor.dim() == 2 and ".layers." in name
        form = experts if ".experts." in name else others
        if not layer or form is None or module.endswith("gate") or tensor.shape[1] % 32:
            tensors[name] = plain[name] = tensor
            continue
        parts, want = form(tensor.float())
        tensors |= {f"{module}.{leaf}": part.contiguous() for leaf, part in parts.items()}
        plain[name] = want.to(torch.bfloat16)
    save_file(tensors, folder / "model.safetensors", {"format": "pt"})
    save_file(plain, dequantized / "model.safetensors", {"format": "pt"})
    text = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(text | {"quantization_config": config}))


@pytest.mark.parametrize("name", SOURCES)
@pytest.mark.filterwarnings("ignore:.*are dequantized")
def test_a_quantized_source(tmp_path, source, name):
    """It converts to the bits that its dequantized weights convert to, calibrated or not."""
    changes = {} if name == "deepseek-v4" else {"moe_intermediate_size": 64}
    floats, text = source(name, **changes), tmp_path / "text.txt"
    text.write_text(PROMPT)
    _quantized(floats, tmp_path / "src", *SOURCES[name], tmp_path / "plain")
    for options in (Options(), Options(text=text))[: 1 if name == "deepseek-v4" else 2]:
        found = []
        for folder in ("src", "plain"):
            out = tmp_path / f"{folder}-{options.text is not None}"
            convert(tmp_path / folder, out, options, no_bar)
            found.append(tensors_of(out))
            quantization = json.loads((out / "config.json").read_text())["quantization_config"]
            assert quantization["quant_method"] == "modelopt"
        got, want = found
        assert got.keys() == want.keys() and any(name.endswith("weight_scale_2") for name in got)
        for each, tensor in want.items():
            assert torch.equal(as_bytes(got[each]), as_bytes(tensor)), each


def test_mxfp4_of_gpt_oss(tmp_path, source):
    """Blocks and scales of [2I, H] are read as transformers reads them, [H, 2I]."""
    from transformers.integrations.mxfp4 import convert_moe_packed_tensors

    from nvfp4.checkpoints.files import TensorFiles
    from nvfp4.checkpoints.storage import FloatTensors

    blocks = torch.randint(0, 256, (4, 192, 2, 16), dtype=torch.uint8)
    scales = torch.randint(118, 126, (4, 192, 2), dtype=torch.uint8)
    name = "model.layers.0.mlp.experts.gate_up_proj"
    tensors = {f"{name}_blocks": blocks, f"{name}_scales": scales}
    save_file(tensors, tmp_path / "model.safetensors", {"format": "pt"})
    floats = FloatTensors(TensorFiles(tmp_path))
    assert floats.names == (name,) and floats.shape(name) == (4, 64, 192)
    want = convert_moe_packed_tensors(blocks, scales, dtype=torch.bfloat16)
    assert torch.equal(floats.read(name), want)


def test_a_source_of_no_known_form(tmp_path, source):
    shutil.copytree(source("llama"), tmp_path / "src")
    tensors = tensors_of(tmp_path / "src")
    name = "model.layers.0.mlp.up_proj"
    tensors[f"{name}.qweight"] = torch.zeros(8, 96, dtype=torch.int32)
    save_file(tensors, tmp_path / "src" / "model.safetensors", {"format": "pt"})
    with pytest.raises(ValueError, match=f"got one quantized .unknown., such as {name}.qweight"):
        convert(tmp_path / "src", tmp_path / "out", Options(), no_bar)
