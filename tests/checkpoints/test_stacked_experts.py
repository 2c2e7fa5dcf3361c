"""Experts in NVFP4 in one tensor a projection, as ModelOpt writes those of gpt-oss and Llama 4."""

import json

import oracle
import pytest
import torch
import transformers
from cases import from_numpy
from checkpoint_files import SMALL
from conversion import no_bar, tensors_of
from safetensors.torch import save_file
from torch import nn
from transformers import AutoModelForCausalLM

import nvfp4
import nvfp4.transformers
from nvfp4.checkpoints import COMPRESSED_TENSORS, MODELOPT, Group, Scheme, load_model
from nvfp4.checkpoints.inspect import inspect
from nvfp4.layers import MoE

EXPERTS = dict(intermediate_size=48, head_dim=16, num_local_experts=4, num_experts_per_tok=2)
QWEN = dict(intermediate_size=96, head_dim=16, num_experts=4, moe_intermediate_size=48)
LLAMA = EXPERTS | dict(intermediate_size_mlp=96, interleave_moe_layer_step=1)
LEAVES = {
    # format: what follows the name of a stack: data, scales, global scale, input scale
    MODELOPT: ("", "_weight_scale", "_weight_scale_2", "_input_scale"),
    COMPRESSED_TENSORS: ("_packed", "_scale", "_global_scale", "_input_global_scale"),
}
CASES = {
    # a class of transformers: its configuration, whether the file has x W, the format
    "GptOss": (EXPERTS, True, MODELOPT),
    "Llama4Text": (LLAMA, True, MODELOPT),
    "Qwen3Moe": (QWEN | dict(num_experts_per_tok=2), False, COMPRESSED_TENSORS),
    "GraniteMoe": (EXPERTS, False, MODELOPT),
}
NEAR = 1e-4
"""How far logits may be, 1 - cosine, from those of the dequantized weights."""
IDS = torch.arange(1, 9)[None]


def _saved(kind, folder, format, activation="bf16"):
    """A model of random weights, and its tensors with a block's experts in one tensor."""
    torch.manual_seed(0)
    config = getattr(transformers, f"{kind}Config")(**(SMALL | CASES[kind][0]))
    model = AutoModelForCausalLM.from_config(config).bfloat16().eval()
    for name, parameter in model.named_parameters():
        if "experts" in name:
            parameter.data.normal_(std=1.0 if "bias" in name else 0.25)
    for each in ("floats", "out"):
        model.save_pretrained(folder / each, save_original_format=kind == "GraniteMoe")
    path = folder / "out" / "config.json"
    scheme = Scheme(format, (Group(calibrated=False, activation=activation),))
    quantized = json.loads(path.read_text()) | {"quantization_config": scheme.config()}
    path.write_text(json.dumps(quantized))
    return tensors_of(folder / "floats")


def _stacks(tensors):
    return [n for n, t in tensors.items() if t.dim() == 3 and "experts" in n or "_linear" in n]


def _quantized(name, w, turned, format):
    """A stack's tensors, with a global scale for each expert, and its values in float64."""
    rows = w.mT if turned else w
    each = [nvfp4.quantize(expert.contiguous(), scale_layout="linear") for expert in rows]
    data, scales = (torch.stack([getattr(q, n) for q in each]) for n in ("data", "scales"))
    p = torch.stack([q.global_scale for q in each])
    values = torch.stack(
        [
            from_numpy(oracle.decode(d.numpy(), s.view(torch.uint8).numpy())) * q.double()
            for d, s, q in zip(data, scales, p, strict=True)
        ]
    )
    if turned:
        data, scales, values = (t.mT.contiguous() for t in (data, scales, values))
    leaves = LEAVES[format]
    if name.endswith(".weight"):  # Granite's, which are layers
        leaves = ("", "_scale", "_scale_2", "_scale")
    stored = {name + leaves[0]: data, name + leaves[1]: scales}
    return stored | {name + leaves[2]: 1 / p if format.divides else p}, values


def _write(folder, tensors):
    save_file(
        {n: t.contiguous() for n, t in tensors.items()},
        folder / "model.safetensors",
        {"format": "pt"},
    )


def _logits(model):
    with torch.no_grad():
        return model(IDS).logits


def _far(a, b):
    return 1 - nn.functional.cosine_similarity(a.flatten().double(), b.flatten().double(), dim=0)


@pytest.mark.parametrize("kind", CASES)
def test_stacked_experts_ran_in_bf16(tmp_path, kind):
    """They run in NVFP4, and compute what transformers computes of the dequantized weights."""
    _, turned, format = CASES[kind]
    floats = _saved(kind, tmp_path, format)
    stored = dict(floats)
    for name in _stacks(floats):
        made, values = _quantized(name, stored.pop(name), turned, format)
        stored |= made
        floats[name] = values.to(torch.bfloat16)
    _write(tmp_path / "out", stored)
    _write(tmp_path / "floats", floats)

    model = load_model(tmp_path / "out", dtype=torch.float32)
    experts = [m for m in model.modules() if isinstance(m, MoE)]
    assert len(experts) == 2 and {m.activation_format for m in experts} == {"bf16"}
    want = _logits(AutoModelForCausalLM.from_pretrained(tmp_path / "floats", dtype=torch.float32))
    assert _far(_logits(model), want) < NEAR

    found = inspect(tmp_path / "out", no_bar)
    assert len(found.layers) == 2 * 4 * 3 and not found.damaged
    notes = [f.what for f in found.findings if "in one tensor" in f.what]
    assert notes == ["4 experts in one tensor: load_model takes them apart, engines may not"] * 4
    if format is MODELOPT:
        theirs = AutoModelForCausalLM.from_pretrained(tmp_path / "out", dtype=torch.float32)
        assert torch.equal(_logits(theirs), _logits(model))


def test_stacked_experts_have_their_input_scales(tmp_path):
    floats = _saved("GptOss", tmp_path, MODELOPT, "nvfp4")
    stored = dict(floats)
    for name in _stacks(floats):
        stored |= _quantized(name, stored.pop(name), True, MODELOPT)[0]
        stored[f"{name}_input_scale"] = torch.tensor(0.25 if "down" in name else 0.5)
    _write(tmp_path / "out", stored)
    for module in load_model(tmp_path / "out").modules():
        if isinstance(module, MoE):
            assert module.activation_format == "nvfp4"
            assert module.x_global_scale == 0.5 and module.h_global_scale.tolist() == [0.25] * 4


def test_stacks_with_blocks_along_the_outputs_are_dequantized(tmp_path):
    floats = _saved("GptOss", tmp_path, MODELOPT)
    stored = dict(floats)
    for name in _stacks(floats):
        made, values = _quantized(name, stored.pop(name), False, MODELOPT)
        stored |= made
        floats[name] = values.to(torch.bfloat16)
    _write(tmp_path / "out", stored)
    _write(tmp_path / "floats", floats)
    said = "4 in NVFP4 experts in one tensor .its blocks lie along the outputs"
    with pytest.warns(UserWarning, match=said):
        model = load_model(tmp_path / "out")
    want = AutoModelForCausalLM.from_pretrained(tmp_path / "floats", dtype=torch.bfloat16)
    assert torch.equal(_logits(model), _logits(want))
    notes = [f.what for f in inspect(tmp_path / "out", no_bar).findings]
    assert sum("dequantizes it, because its blocks lie along the outputs" in n for n in notes) == 4
