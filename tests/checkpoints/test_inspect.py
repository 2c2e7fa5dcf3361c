"""python -m nvfp4 inspect: what it says of whole, odd and damaged checkpoints."""

import json

import pytest
import torch

pytest.importorskip("safetensors")

from checkpoint_files import layer, stored, write
from typer.testing import CliRunner

from nvfp4.checkpoints import COMPRESSED_TENSORS, FORMATS, MODELOPT
from nvfp4.cli import app

Q, K = (f"model.layers.0.self_attn.{part}_proj" for part in "qk")
O_PROJ = "model.layers.0.self_attn.o_proj"
formats = pytest.mark.parametrize("format", FORMATS.values(), ids=FORMATS)


def _inspect(folder, exit_code=0):
    result = CliRunner().invoke(app, ["inspect", str(folder), "--json"])
    assert result.exit_code == exit_code, result.output
    return json.loads(result.stdout)


def _pair(format):
    """q and k with one global scale."""
    q = layer(16, 64)
    return stored(format, Q, q) | stored(format, K, q)


@formats
def test_a_whole_checkpoint(tmp_path, format):
    tensors = _pair(format) | {"model.norm.weight": torch.ones(64)}
    report = _inspect(write(tmp_path, format, tensors))
    assert report["findings"] == [] and not report["damaged"] and not report["calibrated"]
    assert report["format"] == format.name and report["unquantized"] == []
    k, q = report["layers"]
    assert (q["module"], q["shape"]) == (Q, [16, 64])
    assert 0 < q["scale_min"] < q["scale_max"] == 448 and q["zero"] == 0
    p = tensors[f"{Q}.{format.global_scale}"].item()
    assert q["global_scale"] == pytest.approx(1 / p if format.divides else p)
    nbytes = 16 * 64 // 2 + 16 * 64 // 16 + 4
    assert q["nbytes"] == nbytes and report["bytes_saved"] == 2 * (16 * 64 * 2 - nbytes)
    text = CliRunner().invoke(app, ["inspect", str(tmp_path)]).stdout
    assert "model.layers.*.self_attn.q_proj" in text and "2 layers, 0.0 MB instead of" in text


@formats
def test_weights_alone(tmp_path, format):
    report = _inspect(write(tmp_path, format, _pair(format), activation="bf16"))
    assert not report["quantizes_activations"] and report["findings"] == []
    assert "weights alone (W4A16)" in CliRunner().invoke(app, ["inspect", str(tmp_path)]).stdout
    assert _inspect(write(tmp_path, format, _pair(format)))["quantizes_activations"]
    assert "per token" in CliRunner().invoke(app, ["inspect", str(tmp_path)]).stdout


def _zero(tensors):
    """Two of q's 64 blocks have the scale 0, eight more."""
    tensors[f"{Q}.weight_scale"].view(torch.uint8)[:5, :2] = 0


def _saturated(tensors):
    tensors[f"{Q}.weight_scale"].view(torch.uint8)[:5, :2] = 0x7E


NOTES = {
    "zero blocks": (_zero, Q, "15.6% of the blocks have the scale 0"),
    "saturated blocks": (_saturated, Q, "of the blocks have the largest scale, 448"),
    "scales that differ": (
        lambda t: t[f"{K}.weight_scale_2"].mul_(2),
        Q,
        "global scales of q_proj, k_proj differ, 2 times",
    ),
    "a layer in floats": (
        lambda t: t.update({f"{O_PROJ}.weight": torch.ones(16, 64)}),
        O_PROJ,
        "in floats, though the configuration has it quantized",
    ),
    "a layer that could be": (
        lambda t: t.update({"model.layers.1.left.weight": torch.ones(16, 64)}),
        "model.layers.1.left",
        "[16, 64] in floats, which could be quantized",
    ),
    "a layer that is ignored": (
        lambda t: t.update(stored(MODELOPT, "model.layers.1.left", layer(16, 64))),
        "model.layers.1.left",
        "quantized, though the configuration ignores it",
    ),
}


@pytest.mark.parametrize("change, module, what", NOTES.values(), ids=NOTES)
def test_notes(tmp_path, change, module, what):
    tensors = _pair(MODELOPT)
    change(tensors)
    report = _inspect(write(tmp_path, MODELOPT, tensors, ignore=("model.layers.1.left",)))
    (finding,) = report["findings"]
    assert (finding["kind"], finding["module"]) == ("note", module) and what in finding["what"]
    assert not report["damaged"]
    assert finding["what"] in CliRunner().invoke(app, ["inspect", str(tmp_path)]).stdout


@formats
def test_missing_input_scales(tmp_path, format):
    tensors = _pair(format) | {f"{Q}.{format.input_global_scale}": torch.ones(1)}
    report = _inspect(write(tmp_path, format, tensors, calibrated=True))
    (finding,) = report["findings"]
    assert finding["module"] == K and "no input scale" in finding["what"]
    assert [layer["input_global_scale"] for layer in report["layers"]] == [None, 1.0]
    text = CliRunner().invoke(app, ["inspect", str(tmp_path)]).stdout
    assert "input scales calibrated" in text and "1.0e+00..1.0e+00" in text and "none" in text


@formats
def test_damage(tmp_path, format):
    """All of it is listed, and the exit status is 1."""
    tensors = _pair(format) | stored(format, O_PROJ, layer(16, 64))
    tensors[f"{Q}.{format.scales}"].view(torch.uint8)[0, 0] = 0x7F
    del tensors[f"{K}.{format.global_scale}"]
    report = _inspect(write(tmp_path, format, tensors), exit_code=1)
    assert report["damaged"] and [layer["module"] for layer in report["layers"]] == [O_PROJ]
    found = {finding["module"]: finding["what"] for finding in report["findings"]}
    assert found.keys() == {Q, K}
    assert f"{Q}.{format.scales}" in found[Q] and "1 that are NaN or negative" in found[Q]
    assert f"{K}.{format.global_scale}, got none" in found[K]
    result = CliRunner().invoke(app, ["inspect", str(tmp_path)])
    assert result.exit_code == 1 and result.stdout.count("damage: ") == 2


def test_a_missing_expert(tmp_path):
    tensors = {}
    for e in (0, 2):
        for part in ("gate_proj", "up_proj", "down_proj"):
            tensors |= stored(MODELOPT, f"model.layers.0.mlp.experts.{e}.{part}", layer(16, 16))
    report = _inspect(write(tmp_path, MODELOPT, tensors), exit_code=1)
    (damage,) = [finding for finding in report["findings"] if finding["kind"] == "damage"]
    assert damage["module"] == "model.layers.0.mlp.experts.1"


def test_what_cannot_be_opened(tmp_path):
    result = CliRunner().invoke(app, ["inspect", str(tmp_path)])
    assert result.exit_code == 2 and "needs a quantization_config" in result.stderr


# what is in no layer


def test_a_tensor_that_claims_thirty_million_experts(tmp_path):
    """Counting them took 4 GB."""
    tensors = _pair(MODELOPT)
    many = f"{Q.replace('self_attn.q_proj', 'mlp')}.experts.30000000.up_proj"
    report = _inspect(write(tmp_path, MODELOPT, tensors | stored(MODELOPT, many, layer(16, 64))), 1)
    missing = [each for each in report["findings"] if "missing, though there are" in each["what"]]
    assert len(missing) == 100


def test_what_is_of_no_known_form_is_noted(tmp_path):
    extra = {"model.layers.0.mlp.fc.qweight": torch.zeros(8, 64, dtype=torch.int32)}
    (note,) = _inspect(write(tmp_path, MODELOPT, _pair(MODELOPT) | extra))["findings"]
    assert note["what"] == "I32 [8, 64], which is of no known form"


def test_a_global_scale_that_was_not_inverted(tmp_path):
    """compressed-tensors stores divisors: weights of a million."""
    tensors = _pair(COMPRESSED_TENSORS)
    for module in (Q, K):
        tensors[f"{module}.weight_global_scale"] = 1 / tensors[f"{module}.weight_global_scale"]
    first, second = _inspect(write(tmp_path, COMPRESSED_TENSORS, tensors))["findings"]
    assert first["what"].startswith("weights of up to ") and "inverted" in second["what"]
