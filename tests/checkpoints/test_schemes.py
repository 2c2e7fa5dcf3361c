"""The configurations of both formats: written and read again, as others write them, and refused."""

import json
import pickle

import pytest

pytest.importorskip("safetensors")

from nvfp4.checkpoints import (
    COMPRESSED_TENSORS,
    FORMATS,
    MODELOPT,
    Group,
    Scheme,
    is_nvfp4,
    parse,
    read_scheme,
)

NUMBERS = {"num_bits": 4, "type": "float", "group_size": 16}
BOTH = {"weights": NUMBERS, "input_activations": NUMBERS}


@pytest.mark.parametrize("format", FORMATS.values(), ids=FORMATS)
@pytest.mark.parametrize(
    "group", [Group(), Group(calibrated=False), Group(calibrated=False, activation="bf16")]
)
def test_written_and_read(format, group):
    scheme = Scheme(format, (group,), ("lm_head", "model.layers.0.mlp.gate"))
    found = [scheme.config()]
    if format is MODELOPT and group != Group(calibrated=False):  # which its second file cannot say
        found.append(scheme.hf_quant_config())
    for config in found:
        assert parse(json.loads(json.dumps(config))) == scheme and is_nvfp4(config)


def _compressed(activations=None, **more):
    group = {"targets": ["Linear"], "weights": NUMBERS, "input_activations": activations}
    config = {"quant_method": "compressed-tensors", "format": "nvfp4-pack-quantized"}
    return config | {"config_groups": {"group_0": group}, "ignore": []} | more


def _modelopt(**more):
    return {"quant_method": "modelopt", "quant_algo": "NVFP4"} | more


def _nested(**more):
    section = {"quant_algo": "NVFP4", "kv_cache_quant_algo": "FP8", "group_size": 16}
    return {"producer": {"name": "modelopt"}, "quantization": section | more}


@pytest.mark.parametrize(
    "config, calibrated, activation",
    [
        (_modelopt(), True, "nvfp4"),
        (_modelopt(quant_algo="nvfp4"), True, "nvfp4"),
        (_modelopt(quant_algo="NVFP4_AWQ"), True, "nvfp4"),
        (_modelopt(quant_algo="W4A16_NVFP4"), False, "bf16"),
        (_modelopt(quant_method="modelopt_fp4"), True, "nvfp4"),
        (_modelopt(config_groups={"a": BOTH}), True, "nvfp4"),
        (_modelopt(config_groups={"a": BOTH}, quant_algo="W4A16_NVFP4"), False, "bf16"),
        (_modelopt(config_groups={"a": {"weights": NUMBERS}}), False, "bf16"),
        (_nested(exclude_modules=["lm_head"]), True, "nvfp4"),
        (_nested(quant_algo="W4A16_NVFP4"), False, "bf16"),
        (_compressed(NUMBERS | {"dynamic": "local"}), True, "nvfp4"),
        (_compressed(NUMBERS | {"dynamic": False}), True, "nvfp4"),
        (_compressed(NUMBERS | {"dynamic": True}), False, "nvfp4"),
        (_compressed(), False, "bf16"),
    ],
)
def test_as_others_write_them(config, calibrated, activation):
    scheme = parse(config)
    assert is_nvfp4(config) and scheme.groups[0].calibrated is calibrated
    assert scheme.groups[0].activation == activation
    assert scheme.quantizes("model.layers.0.self_attn.q_proj")


@pytest.mark.parametrize(
    "format, ignore, quantized, left",
    [
        (MODELOPT, "lm_head", "lm_head_norm", "lm_head"),
        (MODELOPT, "model.layers.0*", "model.layers.1.mlp.up_proj", "model.layers.0.mlp.up_proj"),
        (MODELOPT, "mlp.gate", "layers.0.mlp.gate_proj", "layers.0.mlp.gate"),
        (MODELOPT, "model.visual", "model.visual_proj", "model.visual.blocks.0.fc1"),
        (COMPRESSED_TENSORS, "lm_head", "model.lm_head", "lm_head"),
        (COMPRESSED_TENSORS, "re:.*mlp.gate$", "a.mlp.gate_proj", "a.mlp.gate"),
        (COMPRESSED_TENSORS, "re:model[.]visual", "model.layers.0.fc", "model.visual.blocks.0.fc1"),
    ],
)
def test_ignored(format, ignore, quantized, left):
    scheme = Scheme(format, ignore=(ignore,))
    assert scheme.quantizes(quantized) and not scheme.quantizes(left)


def test_a_pattern_of_modelopt_was_not_matched_in_another_process():
    """vLLM's engine gets the scheme pickled. Its format then is another object, and equal."""
    scheme = Scheme(MODELOPT, ignore=("*.mlp.gate", "lm_head"))
    there = pickle.loads(pickle.dumps(scheme))
    assert not there.quantizes("model.layers.0.mlp.gate")
    assert there.config() == scheme.config()


def test_targets():
    """Groups of some layers, the inputs of one of them calibrated."""
    attention, rest = Group(("re:.*self_attn[.].*",), True), Group(("mlp.up_proj",), False)
    scheme = Scheme(COMPRESSED_TENSORS, (attention, rest))
    assert scheme.group_of("model.layers.0.self_attn.q_proj") is attention
    assert scheme.group_of("mlp.up_proj") is rest
    assert scheme.group_of("mlp.down_proj") is None
    assert parse(scheme.config()) == scheme


FP8 = {"num_bits": 8, "type": "float", "group_size": None}


@pytest.mark.parametrize(
    "config, message",
    [
        ({}, "quant_method needs 'modelopt' or 'compressed-tensors', got None"),
        ({"quant_method": "awq"}, "quant_method needs 'modelopt' or .*, got 'awq'"),
        (_modelopt(quant_algo="FP8"), "quant_algo needs one of NVFP4, .*, got 'FP8'"),
        (_modelopt(quant_algo="NVFP5"), "quant_algo needs one of NVFP4, .*, got 'NVFP5'"),
        (_modelopt(quant_algo=None), "quant_algo needs one of NVFP4, .*, got None"),
        (_nested(quant_algo="MIXED_PRECISION"), "quantized_layers needs at least one layer, got"),
        (_nested(group_size=32), "group_size needs 16, got 32"),
        (_nested(group_size="many"), "group_size needs 16, got 'many'"),
        (_nested(exclude_modules="lm_head"), "ignore needs a list of names, got 'lm_head'"),
        (
            _modelopt(config_groups={"a": {"weights": FP8}}),
            "config_groups.a.weights needs NVFP4 .4-bit floats in groups of 16., got",
        ),
        (_compressed(FP8), "config_groups.group_0.input_activations needs NVFP4"),
        (_compressed(format="float-quantized"), "format needs 'nvfp4-pack-quantized' or 'mixed"),
        (_compressed(config_groups={}), "config_groups needs at least one group, got {}"),
        (
            _compressed(config_groups={"NVFP4": ["Linear"]}),
            "config_groups needs at least one group",
        ),
        (_compressed(ignore=[1]), r"ignore needs a list of names, got \[1\]"),
    ],
)
def test_refused(config, message):
    with pytest.raises(ValueError, match=f"^quantization_config: {message}"):
        parse(config)


def test_where_it_is_read(tmp_path):
    """config.json says it; of ModelOpt's older checkpoints the other file alone."""
    assert read_scheme(tmp_path) is None
    config, apart = tmp_path / "config.json", tmp_path / "hf_quant_config.json"
    config.write_text("{}")
    assert read_scheme(tmp_path) is None
    apart.write_text(json.dumps(_nested(exclude_modules=["old"])))
    assert read_scheme(tmp_path).ignore == ("old",)
    config.write_text(json.dumps({"quantization_config": {"quant_method": "modelopt"}}))
    assert read_scheme(tmp_path).ignore == ("old",)
    config.write_text(json.dumps({"quantization_config": _modelopt(ignore=["new"])}))
    assert read_scheme(tmp_path).ignore == ("new",)
    config.write_text(json.dumps({"quantization_config": {"quant_method": "gptq"}}))
    apart.unlink()
    with pytest.raises(ValueError, match="^config.json: quantization_config: quant_method needs"):
        read_scheme(tmp_path)
