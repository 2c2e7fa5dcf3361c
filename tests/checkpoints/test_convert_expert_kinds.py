"""Experts of other kinds: with biases, with gate and up in turn, without a gate."""

import re

import pytest
import torch
import transformers
from checkpoint_files import SMALL
from conversion import no_bar, tensors_of
from safetensors.torch import save_file
from torch import nn
from transformers import AutoModelForCausalLM

import nvfp4
from nvfp4.checkpoints import Checkpoint, load_model, quantize_model, save_model
from nvfp4.checkpoints.convert import Options, convert
from nvfp4.layers import MoE, SwiGLUMLP

EXPERTS = dict(intermediate_size=48, head_dim=16, num_local_experts=4, num_experts_per_tok=2)
KINDS = {
    # a class of transformers: the limit and the activation of its experts, and its configuration
    "GptOss": (7.0, "swiglu_oai", EXPERTS),
    "NemotronH": (
        None,
        "relu2",
        dict(
            num_hidden_layers=2, layers_block_type=["moe", "attention"], intermediate_size=96,
            head_dim=16, n_routed_experts=4, moe_intermediate_size=48, num_experts_per_tok=2,
            moe_shared_expert_intermediate_size=96, n_group=1, topk_group=1, mamba_num_heads=4,
            n_groups=1, mamba_head_dim=32, ssm_state_size=16,
        ),
    ),
    "MiniMaxM3VLText": (
        7.0,
        "swiglu_oai",
        EXPERTS
        | dict(
            dense_intermediate_size=96, shared_intermediate_size=48, rotary_dim=16,
            mlp_layer_types=["dense", "sparse"], layer_types=["full_attention"] * 2,
        ),
    ),
}  # fmt: skip
NEAR = 1e-4
"""How far logits may be, 1 - cosine, from those of the dequantized weights."""
IDS = torch.arange(1, 9)[None]


def _float_model(kind):
    """Random weights, large enough to reach the limit, and biases that are not zero."""
    torch.manual_seed(0)
    config = getattr(transformers, f"{kind}Config")(**(SMALL | KINDS[kind][2]))
    model = AutoModelForCausalLM.from_config(config).bfloat16().eval()
    for name, parameter in model.named_parameters():
        if ".experts." in name:
            parameter.data.normal_(std=1.0 if "bias" in name else 0.25)
    return model


def _logits(model):
    with torch.no_grad():
        return model(IDS).logits


def _far(a, b):
    return 1 - nn.functional.cosine_similarity(a.flatten().double(), b.flatten().double(), dim=0)


def _dequantized(floats, folder):
    """The tensors of the folder in floats, each weight that was quantized read back as bfloat16."""
    checkpoint, found = Checkpoint(folder), tensors_of(floats)
    for module in checkpoint.modules:
        w = checkpoint.weight(module).dequantize(torch.float32).bfloat16()
        if f"{module}.weight" in found:
            found[f"{module}.weight"] = w
            continue
        experts, index, part = module.rsplit(".", 2)
        is_down, is_up = part == "down_proj", part == "up_proj"
        stack = found[f"{experts}.{'down_proj' if is_down else 'gate_up_proj'}"][int(index)]
        if f"{experts}.down_proj_bias" in found:  # gpt-oss: x W, and gate and up in turn
            stack = stack.T if is_down else stack.T[is_up::2]
        elif not is_down:
            stack = stack.chunk(2)[is_up]
        stack.copy_(w)
    return found


@pytest.mark.parametrize("kind", KINDS)
def test_experts_run_in_nvfp4_as_transformers_runs_them_dequantized(tmp_path, kind):
    model = _float_model(kind)
    model.save_pretrained(tmp_path / "floats")
    convert(tmp_path / "floats", tmp_path / "out", Options(), no_bar)
    loaded = load_model(tmp_path / "out")
    experts = [m for m in loaded.modules() if isinstance(m, MoE)]
    assert len(experts) == (2 if kind == "GptOss" else 1)
    assert {(m.swiglu_limit, m.activation) for m in experts} == {KINDS[kind][:2]}
    biases = [b for m in experts for b in (m.w13_bias, m.w2_bias) if b is not None]
    assert len(biases) == (4 if kind == "GptOss" else 0)

    tensors = _dequantized(tmp_path / "floats", tmp_path / "out")
    save_file(tensors, tmp_path / "floats" / "model.safetensors", {"format": "pt"})
    want = _logits(AutoModelForCausalLM.from_pretrained(tmp_path / "floats", dtype=torch.float32))
    got = _logits(load_model(tmp_path / "out", dtype=torch.float32))
    assert _far(got, want) < NEAR < _far(_logits(model), want)

    theirs = AutoModelForCausalLM.from_pretrained(tmp_path / "floats", dtype=torch.bfloat16)
    made = quantize_model(theirs, activation="bf16")
    found = [m.activation for m in made.modules() if isinstance(m, MoE)]
    assert found == [KINDS[kind][1]] * len(experts)
    save_model(made, tmp_path / "saved")
    assert torch.equal(_logits(load_model(tmp_path / "saved")), _logits(made))


def test_experts_that_lack_their_biases_are_an_error(tmp_path):
    _float_model("GptOss").save_pretrained(tmp_path / "floats")
    convert(tmp_path / "floats", tmp_path / "out", Options(), no_bar)
    tensors = tensors_of(tmp_path / "out")
    assert len([name for name in tensors if re.search(r"experts.\d.down_proj.bias", name)]) == 8
    left = {n: t for n, t in tensors.items() if not n.endswith("down_proj.bias")}
    save_file(left, tmp_path / "out" / "model.safetensors", {"format": "pt"})
    need = "needs biases of gate and up and down, as .*, got biases of gate and up"
    with pytest.raises(ValueError, match=need):
        load_model(tmp_path / "out")


@pytest.mark.parametrize("activation", ["silu", "relu2"])
def test_an_mlp_with_biases_is_saved_with_them(tmp_path, activation):
    torch.manual_seed(0)
    parts = 1 if activation == "relu2" else 2
    packed = [nvfp4.quantize_weight(torch.randn(32, 32).bfloat16()) for _ in range(parts)]
    biases = dict(w13_bias=torch.randn(32 * parts), w2_bias=torch.randn(32))
    mlp = SwiGLUMLP(nvfp4.concatenate(packed), packed[0], **biases, activation=activation)
    save_model(nn.ModuleDict({"mlp": mlp}), tmp_path / "out")
    again = Checkpoint(tmp_path / "out").swiglu_mlp("mlp", activation=activation)
    x = torch.randn(3, 32).bfloat16()
    assert torch.equal(again(x), mlp(x))
