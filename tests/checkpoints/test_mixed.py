"""Checkpoints with other formats beside NVFP4: what they say, and what is loaded."""

import json
import shutil
import warnings

import pytest
import torch
from conversion import no_bar, tensors_of
from safetensors.torch import save_file
from stored_forms import (
    int4,
    int4_of_two_rows,
    int4_of_zero_points,
    int8,
    mxfp4,
    mxfp8,
    per_block,
    per_block_with_dimensions_of_1,
    per_row,
    per_tensor,
)

from nvfp4.checkpoints import COMPRESSED_TENSORS, MODELOPT, Checkpoint, is_nvfp4, load_model, parse
from nvfp4.checkpoints.convert import Options, convert
from nvfp4.checkpoints.inspect import inspect
from nvfp4.layers import Linear

NUMBERS = {"num_bits": 4, "type": "float", "group_size": 16}
EIGHT = {"num_bits": 8, "type": "float", "group_size": None}
ATTENTION, MLP = "model.layers.0.self_attn", "model.layers.0.mlp"


FORMS = {
    "FP8": (per_tensor, per_row, per_block, per_block_with_dimensions_of_1),
    "MXFP8": (mxfp8,),
    "MXFP4": (mxfp4,),
    "INT4": (int4, int4_of_zero_points, int4_of_two_rows),
    "INT8": (int8,),
}


@pytest.fixture(scope="module")
def nvfp4_folder(tmp_path_factory):
    from checkpoint_files import save_model

    root = tmp_path_factory.mktemp("mixed")
    torch.manual_seed(0)
    floats = save_model(root / "floats", "llama", num_hidden_layers=1, intermediate_size=160)
    for format in ("modelopt", "compressed-tensors"):
        convert(floats, root / format, Options(format), no_bar)
    return root


def _mixed(nvfp4_folder, to, format, layers):
    """A copy whose `layers` are in the form of their function, and their weights in float64."""
    shutil.copytree(nvfp4_folder / format, to)
    floats, before = tensors_of(nvfp4_folder / "floats"), tensors_of(to)
    want = {}
    for module, form in layers.items():
        for name in [name for name in before if name.startswith(f"{module}.")]:
            del before[name]
        tensors, want[module] = form(floats[f"{module}.weight"].float())
        before |= {f"{module}.{leaf}": tensor for leaf, tensor in tensors.items()}
    save_file({n: t.clone() for n, t in before.items()}, to / "model.safetensors", {"format": "pt"})
    return want


def _say_mixed(folder, others):
    """The configuration as ModelOpt writes it: an algorithm for each layer."""
    layers = {m: {"quant_algo": "NVFP4", "group_size": 16} for m in Checkpoint(folder).modules}
    layers |= {module: {"quant_algo": "FP8"} for module in others}
    mixed = {"quant_algo": "MIXED_PRECISION", "quantized_layers": layers}
    config = json.loads((folder / "config.json").read_text())
    config["quantization_config"] = mixed | {"quant_method": "modelopt", "ignore": ["lm_head"]}
    (folder / "config.json").write_text(json.dumps(config))
    apart = {"quantization": mixed | {"exclude_modules": ["lm_head"]}}
    (folder / "hf_quant_config.json").write_text(json.dumps(apart))


@pytest.mark.parametrize("form", [form for forms in FORMS.values() for form in forms])
def test_a_weight_in_another_form_is_dequantized(tmp_path, nvfp4_folder, form):
    """up_proj [160, 64] and down_proj [64, 160], to the bfloat16 nearest to the exact product."""
    up, down = f"{MLP}.up_proj", f"{MLP}.down_proj"
    folder = tmp_path / "out"
    want = _mixed(nvfp4_folder, folder, "modelopt", {up: form, down: form})
    (name,) = [name for name, forms in FORMS.items() if form in forms]
    checkpoint = Checkpoint(folder)
    assert checkpoint.others == {up: name, down: name} and up not in checkpoint.modules
    for module, weight in want.items():
        got = checkpoint.floats.read(f"{module}.weight")
        assert got.dtype == torch.bfloat16
        torch.testing.assert_close(got.double(), weight, rtol=2**-8, atol=0)


@pytest.mark.parametrize("format", ["modelopt", "compressed-tensors"])
def test_nvfp4_beside_other_formats_loads(tmp_path, nvfp4_folder, format):
    folder = tmp_path / "out"
    forms = {f"{ATTENTION}.o_proj": per_row, f"{MLP}.up_proj": int4, f"{MLP}.down_proj": per_block}
    want = _mixed(nvfp4_folder, folder, format, forms)
    if format == "modelopt":
        _say_mixed(folder, forms)
    with pytest.warns(UserWarning, match="are dequantized to bfloat16: 2 in FP8, 1 in INT4"):
        model = load_model(folder)
    plain = load_model(nvfp4_folder / format, activation="nvfp4" if format == "modelopt" else None)
    for module, weight in want.items():
        got = model.get_submodule(module)
        assert torch.equal(got.weight, weight.to(torch.bfloat16))
        plain.set_submodule(module, torch.nn.Linear(*reversed(weight.shape), bias=False))
        plain.get_submodule(module).weight.data = weight.to(torch.bfloat16)
    ids = torch.arange(1, 9)[None]
    assert torch.equal(model(ids).logits, plain(ids).logits)
    assert len([m for m in model.modules() if isinstance(m, Linear)]) == 4
    found = inspect(folder, no_bar)
    assert not found.damaged and len(found.layers) == 4
    assert found.others == Checkpoint(folder).others and len(found.others) == 3


def test_a_warning_called_weights_float32_that_were_rounded_to_bfloat16(tmp_path, nvfp4_folder):
    folder, up = tmp_path / "out", f"{MLP}.up_proj"
    weight = _mixed(nvfp4_folder, folder, "modelopt", {up: per_row})[up]
    with pytest.warns(UserWarning, match="dequantized to bfloat16, then to float32: 1 in FP8"):
        model = load_model(folder, dtype=torch.float32)
    assert torch.equal(model.get_submodule(up).weight, weight.bfloat16().float())


def test_a_mixed_checkpoint_of_nvfp4_alone_loads_without_a_warning(tmp_path, nvfp4_folder):
    folder = tmp_path / "out"
    _mixed(nvfp4_folder, folder, "modelopt", {})
    _say_mixed(folder, {})
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        model = load_model(folder)
    assert {m.activation for m in model.modules() if isinstance(m, Linear)} == {"nvfp4"}


def test_layers_of_a_mixed_checkpoint():
    """An algorithm for each layer, in ModelOpt's two places of it."""
    layers = {
        "model.layers.0.mlp.experts": {"quant_algo": "nvfp4", "group_size": 16},
        "model.layers.*.mlp.up_proj": {"quant_algo": "W4A16_NVFP4", "group_size": 16},
        "model.layers.0.self_attn.o_proj": {"quant_algo": "FP8"},
        "lm_head": {"quant_algo": "MXFP8", "group_size": 32},
    }
    mixed = {"quant_algo": "MIXED_PRECISION", "quantized_layers": layers}
    for config in (
        {"quant_method": "modelopt", "ignore": ["mlp.gate"], **mixed},
        {"quantization": {"exclude_modules": ["mlp.gate"], **mixed}},
    ):
        scheme = parse(config)
        assert is_nvfp4(config) and scheme.format is MODELOPT
        expert = scheme.group_of("model.layers.0.mlp.experts.3.up_proj")
        assert (expert.activation, expert.calibrated) == ("nvfp4", True)
        assert scheme.group_of("model.layers.1.mlp.up_proj").activation == "bf16"
        for other in ("model.layers.0.self_attn.o_proj", "lm_head"):
            assert scheme.is_other(other) and not scheme.quantizes(other)
        for none in ("model.layers.0.self_attn.q_proj", "model.layers.0.mlp.gate"):
            assert not scheme.is_other(none) and not scheme.quantizes(none)


def test_groups_of_a_mixed_checkpoint():
    """compressed-tensors: a group that names a layer comes before one of all linear layers."""
    groups = {
        "group_0": {"targets": ["Linear"], "format": "float-quantized", "weights": EIGHT},
        "group_1": {
            "targets": ["re:.*mlp.*"],
            "format": "nvfp4-pack-quantized",
            "weights": NUMBERS,
            "input_activations": NUMBERS | {"dynamic": "local"},
        },
    }
    config = {"quant_method": "compressed-tensors", "format": "mixed-precision", "ignore": ["gate"]}
    scheme = parse(config | {"config_groups": groups})
    assert scheme.format is COMPRESSED_TENSORS and is_nvfp4(config | {"config_groups": groups})
    assert scheme.quantizes("a.mlp.up_proj") and scheme.is_other("a.self_attn.q_proj")
    assert not scheme.is_other("gate") and not scheme.quantizes("gate")


def test_sixty_thousand_names_are_looked_up_at_once():
    """A search through the list for each of a checkpoint's layers would take minutes."""
    names = [f"model.layers.{i}.mlp.experts.{e}.up_proj" for i in range(60) for e in range(1000)]
    layers = {name: {"quant_algo": "NVFP4"} for name in names}
    config = {"quant_algo": "MIXED_PRECISION", "quantized_layers": layers}
    scheme = parse(config | {"quant_method": "modelopt"})
    assert all(scheme.quantizes(name) for name in names[::7])


@pytest.mark.parametrize(
    "layers, message",
    [
        ({}, "quantized_layers needs at least one layer, got None"),
        ({"a": {"quant_algo": "FP8"}}, r"quantized_layers needs a layer in NVFP4, got \['a'\]"),
        (
            {"a": {"quant_algo": "NVFP4", "group_size": 32}},
            "quantized_layers.a.group_size needs 16, got 32",
        ),
    ],
)
def test_a_mixed_checkpoint_that_is_refused(layers, message):
    config = {"quant_method": "modelopt", "quant_algo": "MIXED_PRECISION"}
    with pytest.raises(ValueError, match=f"^quantization_config: {message}"):
        parse(config | {"quantized_layers": layers})


CACHE_SCALES = (
    "k_scale", "k_proj.k_scale", "q_scale", "k_zero_point", "k_cache_scale", "k_global_scale",
    "k_proj.output_scale",
)  # fmt: skip


@pytest.mark.parametrize("leaf", CACHE_SCALES)
def test_scales_of_attention_in_8_bits_are_passed_over(tmp_path, nvfp4_folder, leaf):
    folder = tmp_path / "out"
    shutil.copytree(nvfp4_folder / "modelopt", folder)
    tensors = tensors_of(folder) | {f"{ATTENTION}.{leaf}": torch.ones(1)}
    save_file(tensors, folder / "model.safetensors", {"format": "pt"})
    load_model(folder)
    assert not inspect(folder, no_bar).findings
