"""Experts that are published in one tensor a block, and models that see pictures too."""

import re
import shutil

import pytest
import torch
import transformers
from checkpoint_files import SMALL
from conversion import PROMPT, no_bar, tensors_of
from torch import nn
from transformers import AutoModelForCausalLM, AutoModelForImageTextToText

from nvfp4.checkpoints import Checkpoint, load_model
from nvfp4.checkpoints.convert import Options, convert
from nvfp4.checkpoints.experts import is_transposed
from nvfp4.checkpoints.inspect import inspect
from nvfp4.layers import Linear, MoE

STACKED = dict(
    intermediate_size=48, head_dim=16, num_local_experts=4, num_experts_per_tok=2, **SMALL
)
STACKS = {
    # a class of transformers: its configuration
    "GraniteMoe": STACKED,
    "GptOss": STACKED,
    "Llama4Text": STACKED | dict(intermediate_size_mlp=96, interleave_moe_layer_step=1),
    "Gemma4Text": STACKED
    | dict(
        num_experts=4, top_k_experts=2, moe_intermediate_size=48, enable_moe_block=True,
        layer_types=["sliding_attention", "full_attention"], global_head_dim=16,
        num_global_key_value_heads=1, vocab_size_per_layer_input=SMALL["vocab_size"],
        hidden_size_per_layer_input=16, num_kv_shared_layers=0,
    ),
}  # fmt: skip
TEXT = SMALL | dict(intermediate_size=96, head_dim=16)
VISION = dict(
    hidden_size=64, intermediate_size=96, num_attention_heads=4, num_hidden_layers=1,
    image_size=32, patch_size=16,
)  # fmt: skip
QWEN_VISION = dict(
    depth=1, hidden_size=64, intermediate_size=96, num_heads=4, out_hidden_size=64,
    deepstack_visual_indexes=[0],
)  # fmt: skip
ROPE = dict(rope_type="default", rope_theta=10000.0, mrope_section=[4, 2, 2])
MIXTURE = dict(num_experts=4, num_experts_per_tok=2, moe_intermediate_size=48)
VISION_LANGUAGE = {
    "Qwen3_5": dict(
        text_config=TEXT
        | dict(
            linear_num_value_heads=4, linear_num_key_heads=2, linear_key_head_dim=16,
            linear_value_head_dim=16, layer_types=["linear_attention", "full_attention"],
        ),
        vision_config=QWEN_VISION,
    ),
    "Qwen3VLMoe": dict(
        text_config=TEXT | MIXTURE | dict(rope_parameters=ROPE), vision_config=QWEN_VISION
    ),
    "Mistral3": dict(
        text_config=TEXT | dict(model_type="mistral"),
        vision_config=VISION | dict(model_type="pixtral"),
    ),
}  # fmt: skip

AGREES = 0.8
"""The cosine of the logits with those in floats; of another model's logits it is about 0."""


def _save(folder, kind, config, auto=AutoModelForCausalLM):
    torch.manual_seed(0)
    made = getattr(transformers, f"{kind}Config")(**config)
    model = auto.from_config(made).bfloat16().eval()
    model.save_pretrained(folder)
    return model


def _cosine(a, b):
    return nn.functional.cosine_similarity(a.flatten().double(), b.flatten().double(), dim=0)


def _compare_experts(folder, model):
    """Each expert's layer in NVFP4 is that of the model: a wrong one has a cosine of about 0."""
    checkpoint, count = Checkpoint(folder), 0
    for module in checkpoint.modules:
        if ".experts." not in module:
            continue
        experts, expert, part = re.fullmatch(r"(.*\.experts)\.(\d+)\.(\w+)", module).groups()
        layer = re.search(r"layers\.(\d+)\.", experts)[1]
        (own,) = [
            m for n, m in model.named_modules()
            if n.endswith("experts") and f"layers.{layer}." in n and hasattr(m, "gate_up_proj")
        ]  # fmt: skip
        stack = own.down_proj if part in ("down_proj", "w2") else own.gate_up_proj
        want = (stack.mT if is_transposed(own) else stack)[int(expert)]
        if stack is own.gate_up_proj:
            is_up = part in ("up_proj", "w3")
            want = want[is_up::2] if "GptOss" in type(own).__name__ else want.chunk(2)[is_up]
        got = checkpoint.weight(module).dequantize(torch.float32)
        assert got.shape == want.shape and _cosine(got, want) > 0.99, module
        count += 1
    return count


@pytest.mark.parametrize("kind", STACKS)
@pytest.mark.parametrize("calibrated, method", [(False, "rtn"), (True, "rtn"), (True, "gptq")])
def test_experts_in_one_tensor_are_quantized(tmp_path, source, kind, calibrated, method):
    """They become separate experts with the names that engines know, and run as the model's do."""
    model = _save(tmp_path / "floats", kind, STACKS[kind])
    for file in source("llama").glob("token*"):
        shutil.copy(file, tmp_path / "floats")
    text = tmp_path / "text.txt"
    text.write_text(PROMPT)
    outside = ("per_layer_model_projection",) if kind == "Gemma4Text" else ()  # of the blocks
    options = Options(exclude=outside, text=text if calibrated else None, method=method)
    convert(tmp_path / "floats", tmp_path / "out", options, no_bar)
    assert _compare_experts(tmp_path / "out", model) == 2 * 4 * 3
    assert not inspect(tmp_path / "out", no_bar).damaged
    assert not [m for m in Checkpoint(tmp_path / "out").modules if "router" in m]
    loaded, ids = load_model(tmp_path / "out", activation="nvfp4"), torch.arange(1, 9)[None]
    assert len([m for m in loaded.modules() if isinstance(m, MoE)]) == 2
    with torch.no_grad():
        assert _cosine(loaded(ids).logits, model(ids).logits) > AGREES


def test_experts_in_one_tensor_that_stay_in_floats(tmp_path):
    """Excluded ones stay as they are published."""
    _save(tmp_path / "floats", "GraniteMoe", STACKS["GraniteMoe"])
    options = Options(exclude=("experts",))
    with pytest.warns(UserWarning, match="stay in floats, .* in model.layers.*.block_sparse_moe"):
        convert(tmp_path / "floats", tmp_path / "out", options, no_bar)
    before, after = tensors_of(tmp_path / "floats"), tensors_of(tmp_path / "out")
    name = "model.layers.0.block_sparse_moe.input_linear.weight"
    assert torch.equal(before[name], after[name])
    assert not [name for name in after if ".experts." in name]
    load_model(tmp_path / "out")


@pytest.mark.parametrize("kind", VISION_LANGUAGE)
def test_a_vision_language_model(tmp_path, kind):
    """Its text layers are quantized; the vision tower and the projector are ignored, in floats."""
    config = VISION_LANGUAGE[kind]
    model = _save(tmp_path / "floats", kind, config, AutoModelForImageTextToText)
    convert(tmp_path / "floats", tmp_path / "out", Options(), no_bar)
    checkpoint = Checkpoint(tmp_path / "out")
    vision = re.compile("visual|vision|multi_modal_projector")
    assert not [module for module in checkpoint.modules if vision.search(module)]
    assert [module for module in checkpoint.scheme.ignore if vision.search(module)]
    assert _compare_experts(tmp_path / "out", model) == ("Moe" in kind) * 2 * 4 * 3
    loaded, ids = load_model(tmp_path / "out", activation="bf16"), torch.arange(1, 9)[None]
    assert type(loaded) is type(model)
    assert len([m for m in loaded.modules() if isinstance(m, Linear | MoE)]) >= 10
    with torch.no_grad():
        assert _cosine(loaded(input_ids=ids).logits, model(input_ids=ids).logits) > AGREES
