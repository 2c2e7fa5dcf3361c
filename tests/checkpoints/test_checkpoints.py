"""Reading checkpoints of both formats: bits, names, directions; and what is refused, by name."""

import json
import re
from pathlib import Path

import pytest
import torch

import nvfp4
from nvfp4.spec.packing import as_bytes

pytest.importorskip("safetensors")

from checkpoint_files import layer, stored, write
from safetensors.torch import load_file, save_file

from nvfp4.checkpoints import COMPRESSED_TENSORS, FORMATS, MODELOPT, Checkpoint, Group, Scheme

Q, K, V = (f"model.layers.0.self_attn.{part}_proj" for part in "qkv")
MLP = "model.layers.0.mlp"
EXPERTS = "model.layers.0.mlp.experts"

formats = pytest.mark.parametrize("format", FORMATS.values(), ids=FORMATS)


def _bytes(x: torch.Tensor) -> torch.Tensor:
    return x.contiguous().view(torch.uint8)


def _same(got: nvfp4.QuantizedTensor, want: nvfp4.QuantizedTensor) -> None:
    assert torch.equal(_bytes(got.data), as_bytes(want.data))
    assert torch.equal(_bytes(got.linear_scales()), _bytes(want.linear_scales()))


@formats
def test_a_layer_reads_back_bit_for_bit(tmp_path, format):
    weight = layer(24, 64)
    checkpoint = Checkpoint(write(tmp_path, format, stored(format, Q, weight)))
    assert checkpoint.modules == (Q,) and checkpoint.format is format
    got = checkpoint.weight(Q)
    _same(got, weight)
    assert got.scale_layout == "linear" and got.global_scale.shape == ()
    # A divisor is inverted with one rounding.
    p = 1 / (1 / weight.global_scale) if format.divides else weight.global_scale
    assert got.global_scale == p
    assert checkpoint.input_global_scale(Q) is None and checkpoint.bias(Q) is None


def test_what_a_divisor_can_hold_it_holds_exactly():
    """For every float32 mantissa: once inverted twice, a scale stays."""
    mantissas = torch.arange(1 << 23, dtype=torch.int32)
    for exponent in (100, 127, 150):
        p = (mantissas | exponent << 23).view(torch.float32)
        once = COMPRESSED_TENSORS.storable(p)
        assert ((once - p).abs() <= torch.finfo(torch.float32).eps * p).all()
        assert torch.equal(COMPRESSED_TENSORS.to_stored(once), COMPRESSED_TENSORS.to_stored(p))
        assert torch.equal(COMPRESSED_TENSORS.storable(once), once)
        assert torch.equal(MODELOPT.storable(p), p)


@formats
def test_one_layer_does_not_read_another(tmp_path, format):
    tensors = stored(format, Q, layer(16, 32)) | stored(format, K, layer(16, 32))
    _bytes(tensors[f"{K}.{format.scales}"])[0, 0] = 0x7F
    checkpoint = Checkpoint(write(tmp_path, format, tensors))
    checkpoint.weight(Q)
    with pytest.raises(ValueError, match=re.escape(f"{K}.{format.scales} in {tmp_path}")):
        checkpoint.weight(K)


@formats
def test_fused_layers_keep_their_scales(tmp_path, format):
    """q, k and v of unequal sizes, their global scales 1 to 8: the same bits as each alone."""
    parts = {Q: layer(64, 64), K: layer(32, 64, 2.0), V: layer(32, 64, 8.0)}
    tensors = {name: t for m, w in parts.items() for name, t in stored(format, m, w).items()}
    biases = {f"{module}.bias": torch.randn(w.rows) for module, w in parts.items()}
    checkpoint = Checkpoint(write(tmp_path, format, tensors | biases))
    x = torch.randn(5, 64, dtype=torch.bfloat16)
    fused = checkpoint.linear(Q, K, V)
    alone = torch.cat([checkpoint.linear(module)(x) for module in parts], dim=-1)
    assert torch.equal(fused(x), alone)
    want = torch.cat(
        [x.double() @ w.dequantize(torch.float32).double().T for w in parts.values()], 1
    )
    want += torch.cat(list(biases.values()))
    assert torch.nn.functional.cosine_similarity(fused(x).double(), want).amin() > 0.98


def _gated(format, module, names=("gate_proj", "up_proj", "down_proj"), scale=2.0):
    """gate's values are `scale` times up's."""
    gate, up, down = layer(32, 64, 0.1 * scale), layer(32, 64, 0.1), layer(64, 32, 0.1)
    parts = dict(zip(names, (gate, up, down), strict=True))
    tensors = {}
    for name, weight in parts.items():
        tensors |= stored(format, f"{module}.{name}", weight)
    return (gate, up, down), tensors


def _mlp(x, gate, up, down):
    gate, up, down = (w.dequantize(torch.float32).double() for w in (gate, up, down))
    return (torch.nn.functional.silu(x.double() @ gate.T) * (x.double() @ up.T)) @ down.T


def _close(got, want):
    return torch.nn.functional.cosine_similarity(got.double().flatten(), want.flatten(), dim=0)


@formats
def test_gate_and_up_whose_scales_differ_twice(tmp_path, format):
    """The right answer, which one scale for both is not."""
    (gate, up, down), tensors = _gated(format, MLP)
    mlp = Checkpoint(write(tmp_path, format, tensors)).swiglu_mlp(MLP)
    x = torch.randn(16, 64)
    want = _mlp(x, gate, up, down)
    ratio = (mlp(x).double().norm() / want.norm()).item()
    assert _close(mlp(x), want) > 0.98 and 0.97 < ratio < 1.03
    assert mlp.w13_global_scale.unique().numel() == 2
    mlp.w13_global_scale.fill_(mlp.w13_global_scale.max())
    ratio = (mlp(x).double().norm() / want.norm()).item()
    assert ratio > 1.5


@formats
@pytest.mark.parametrize("names", [("gate_proj", "up_proj", "down_proj"), ("w1", "w3", "w2")])
def test_experts(tmp_path, format, names):
    """gate is the first half of w13, up the second, down is w2; each with its own scale."""
    tensors, experts = {}, []
    for e in range(3):
        weights, of_this = _gated(format, f"{EXPERTS}.{e}", names, scale=2.0**e)
        experts.append(weights)
        tensors |= of_this
    checkpoint = Checkpoint(write(tmp_path, format, tensors))
    assert checkpoint.experts == {EXPERTS: 3}
    moe = checkpoint.moe(EXPERTS)
    x = torch.randn(8, 64)
    weights, ids = torch.rand(8, 2), torch.randint(0, 3, (8, 2))
    want = sum(
        weights[:, j, None].double()
        * torch.stack([_mlp(x[t], *experts[ids[t, j]]) for t in range(8)])
        for j in range(2)
    )
    assert _close(moe(x, weights, ids), want) > 0.97
    # Two ranks' parts add up to the whole.
    parts = [checkpoint.moe(EXPERTS, 0, 1), checkpoint.moe(EXPERTS, 1)]
    assert [part.experts for part in parts] == [1, 2] and parts[1].expert_offset == 1
    assert torch.equal(parts[1].w13, moe.w13[1:]) and torch.equal(parts[0].w2, moe.w2[:1])
    total = sum(part(x, weights, ids) for part in parts)
    torch.testing.assert_close(total, moe(x, weights, ids), rtol=1e-5, atol=1e-5)


@formats
def test_experts_with_biases_and_without_a_gate(tmp_path, format):
    tensors, dense = {}, []
    for e in range(2):
        (_, up, down), of_this = _gated(format, f"{EXPERTS}.{e}")
        biases = {"up_proj": torch.randn(32), "down_proj": torch.randn(64)}
        dense.append((up, down, *biases.values()))
        tensors |= {name: t for name, t in of_this.items() if "gate_proj" not in name}
        tensors |= {f"{EXPERTS}.{e}.{part}.bias": bias for part, bias in biases.items()}
    checkpoint = Checkpoint(write(tmp_path, format, tensors, activation="bf16"))
    moe = checkpoint.moe(EXPERTS, activation="relu2")
    assert moe.activation_format == "bf16"
    x, ids = torch.randn(4, 64), torch.tensor([[0], [1], [1], [0]])
    want = []
    for token, (e,) in zip(x.double(), ids.tolist(), strict=True):
        up, down = (w.dequantize(torch.float32).double() for w in dense[e][:2])
        b1, b2 = (bias.double() for bias in dense[e][2:])
        want.append(down @ (up @ token + b1).clamp(min=0) ** 2 + b2)
    assert _close(moe(x, torch.ones(4, 1), ids), torch.stack(want)) > 0.9999
    with pytest.raises(ValueError, match=r"needs .*\.experts\.0\.gate_proj quantized, got none"):
        checkpoint.moe(EXPERTS)
    del tensors[f"{EXPERTS}.1.up_proj.bias"]
    checkpoint = Checkpoint(write(tmp_path / "one", format, tensors))
    with pytest.raises(ValueError, match="need a bias each, or none"):
        checkpoint.moe(EXPERTS, activation="relu2")


@formats
def test_calibrated_scales(tmp_path, format):
    """Of what is fused the largest; of experts one for the tokens, and each its intermediate's."""

    def scale(p):
        return torch.tensor(p).reshape(format.scale_shape).pow(-1 if format.divides else 1)

    tensors = {}
    for e in range(2):
        tensors |= _gated(format, f"{EXPERTS}.{e}")[1]
        for part, p in (("gate_proj", 0.25), ("up_proj", 0.5), ("down_proj", 2.0**e)):
            tensors[f"{EXPERTS}.{e}.{part}.{format.input_global_scale}"] = scale(p)
    tensors |= stored(format, Q, layer(16, 64)) | stored(format, K, layer(16, 64))
    tensors[f"{Q}.{format.input_global_scale}"] = scale(0.125)
    checkpoint = Checkpoint(write(tmp_path, format, tensors, calibrated=True))
    moe = checkpoint.moe(EXPERTS)
    assert moe.x_global_scale == 0.5 and moe.h_global_scale.tolist() == [1.0, 2.0]
    assert checkpoint.linear(Q).input_global_scale == 0.125
    assert checkpoint.linear(Q, K).input_global_scale is None  # k's is to be found per token


def test_layers_of_differing_activations_are_not_fused(tmp_path):
    tensors = stored(COMPRESSED_TENSORS, Q, layer(16, 64))
    tensors |= stored(COMPRESSED_TENSORS, K, layer(16, 64))
    groups = Group((Q,), calibrated=False), Group((K,), calibrated=False, activation="bf16")
    config = {"quantization_config": Scheme(COMPRESSED_TENSORS, groups).config()}
    write(tmp_path, COMPRESSED_TENSORS, tensors)
    (tmp_path / "config.json").write_text(json.dumps(config))
    checkpoint = Checkpoint(tmp_path)
    assert [checkpoint.linear(each).activation for each in (Q, K)] == ["nvfp4", "bf16"]
    with pytest.raises(ValueError, match="need one activation to be fused, got bf16 and nvfp4"):
        checkpoint.linear(Q, K)


def test_awq(tmp_path):
    """pre_quant_scale multiplies the input before it is quantized."""
    s = torch.rand(64, dtype=torch.bfloat16) + 0.5
    tensors = stored(MODELOPT, Q, layer(16, 64)) | {f"{Q}.pre_quant_scale": s}
    tensors |= stored(MODELOPT, K, layer(16, 64))
    checkpoint = Checkpoint(write(tmp_path, MODELOPT, tensors))
    linear, x = checkpoint.linear(Q), torch.randn(4, 64, dtype=torch.bfloat16)
    plain = nvfp4.layers.Linear(checkpoint.weight(Q))
    assert torch.equal(linear(x), plain(x * s)) and not torch.equal(linear(x), plain(x))
    with pytest.raises(ValueError, match="need one pre_quant_scale to be fused"):
        checkpoint.linear(Q, K)
    with pytest.raises(ValueError, match=r"pre_quant_scale needs shape \[64\], got \[32\]"):
        nvfp4.layers.Linear(checkpoint.weight(Q), pre_quant_scale=s[:32])


def test_layers_left_in_floats(tmp_path):
    embedding = torch.randn(8, 16, dtype=torch.bfloat16)
    tensors = stored(MODELOPT, Q, layer(16, 64)) | {"model.embed_tokens.weight": embedding}
    checkpoint = Checkpoint(write(tmp_path, MODELOPT, tensors, ignore=("model.embed_tokens",)))
    assert not checkpoint.is_quantized("model.embed_tokens")
    assert torch.equal(checkpoint.unquantized("model.embed_tokens"), embedding)
    with pytest.raises(ValueError, match=f"{Q}.weight in .* needs dtype BF16 or .*, got U8"):
        checkpoint.unquantized(Q)


@formats
def test_shards(tmp_path, format):
    first, second = stored(format, Q, layer(16, 32)), stored(format, K, layer(16, 32))
    write(tmp_path, format, first)
    (tmp_path / "model.safetensors").unlink()
    save_file(first, tmp_path / "a.safetensors")
    save_file(second, tmp_path / "b.safetensors")
    index = {name: "a.safetensors" for name in first} | {name: "b.safetensors" for name in second}
    text = json.dumps({"metadata": {}, "weight_map": index})
    (tmp_path / "model.safetensors.index.json").write_text(text)
    checkpoint = Checkpoint(tmp_path)
    assert set(checkpoint.modules) == {Q, K}
    checkpoint.linear(Q, K)
    (tmp_path / "b.safetensors").unlink()
    with pytest.raises(ValueError, match="b.safetensors needs to exist"):
        Checkpoint(tmp_path)
    save_file(first, tmp_path / "b.safetensors")
    with pytest.raises(ValueError, match=f"b.safetensors needs the tensor {K}.* of the index"):
        Checkpoint(tmp_path)


# damage


def _fill(tensor, byte):
    _bytes(tensor)[-1, -1] = byte
    return tensor


DAMAGE = {
    # name: (the tensor: "data", "scales" …, what it becomes (None: it goes), the error)
    "no data": ("data", lambda t: None, "needs the tensor {}, got none"),
    "no block scales": ("scales", lambda t: None, "needs the tensor {}, got none"),
    "no global scale": ("global_scale", lambda t: None, "needs the tensor {}, got none"),
    "int8 data": ("data", lambda t: t.view(torch.int8), "{} in {} needs dtype U8, got I8"),
    "bf16 scales": ("scales", lambda t: t.bfloat16(), "{} in {} needs dtype F8_E4M3, got BF16"),
    "bf16 global": ("global_scale", lambda t: t.bfloat16(), "{} in {} needs dtype F32, got BF16"),
    "flat data": ("data", lambda t: t.flatten(), "{} in {} needs 2 dimensions, got shape [512]"),
    "K not of 16": (
        "data",
        lambda t: t[:, :12].clone(),
        "{} in {} needs a shape [N, K/2] with K a positive multiple of 16, got [16, 12]",
    ),
    "a row short": (
        "scales",
        lambda t: t[1:].clone(),
        "{} in {} needs shape [16, 4], got [15, 4]",
    ),
    "NaN scale": ("scales", lambda t: _fill(t, 0x7F), "{} in {}: scales needs bytes 0x00 to 0x7E"),
    "-NaN scale": ("scales", lambda t: _fill(t, 0xFF), "{} in {}: scales needs bytes 0x00 to 0x7E"),
    "negative": ("scales", lambda t: _fill(t, 0xB8), "{} in {}: scales needs bytes 0x00 to 0x7E"),
    "two globals": (
        "global_scale",
        lambda t: t.repeat(2),
        "{} in {} needs one value, got shape [2]",
    ),
    **{
        f"{value} {part}": (
            part,
            lambda t, value=value: torch.full_like(t, value),
            "{} in {} needs a finite positive value, got " + str(value),
        )
        for value in (0.0, -1.0, float("inf"), float("nan"))
        for part in ("global_scale", "input_global_scale")
    },
}


@formats
@pytest.mark.parametrize("part, change, error", DAMAGE.values(), ids=DAMAGE)
def test_damage_is_named(tmp_path, format, part, change, error):
    tensors = stored(format, Q, layer(16, 64)) | stored(format, K, layer(16, 64))
    name = f"{Q}.{getattr(format, part)}"
    changed = change(tensors.get(name, tensors[f"{Q}.{format.global_scale}"]))
    if changed is None:
        del tensors[name]
    else:
        tensors[name] = changed
    checkpoint = Checkpoint(write(tmp_path, format, tensors, calibrated=True))
    message = error.replace("{}", name, 1).replace("{}", str(tmp_path / "model.safetensors"))
    if format is MODELOPT and part == "data":
        # "weight" is a layer in floats' name too: what is left of this one says that it is not.
        assert checkpoint.is_quantized(Q)
    with pytest.raises(ValueError, match=re.escape(message)):
        checkpoint.linear(Q)
    checkpoint.linear(K)


@formats
@pytest.mark.parametrize("keep", [4, 100, -1])
def test_a_file_cut_short(tmp_path, format, keep):
    write(tmp_path, format, stored(format, Q, layer(16, 64)))
    file = tmp_path / "model.safetensors"
    file.write_bytes(file.read_bytes()[:keep])
    with pytest.raises(ValueError, match=f"{re.escape(str(file))} needs to be a whole safetensors"):
        Checkpoint(tmp_path)


def test_layers_are_in_order(tmp_path):
    tensors: dict[str, torch.Tensor] = {}
    for index in (10, 2, 1):
        tensors |= stored(MODELOPT, f"layers.{index}.fc", layer(16, 16))
    checkpoint = Checkpoint(write(tmp_path, MODELOPT, tensors))
    assert checkpoint.modules == ("layers.1.fc", "layers.2.fc", "layers.10.fc")


def test_a_missing_expert(tmp_path):
    tensors = {}
    for e in (0, 2):
        tensors |= _gated(MODELOPT, f"{EXPERTS}.{e}")[1]
    checkpoint = Checkpoint(write(tmp_path, MODELOPT, tensors))
    with pytest.raises(ValueError, match=f"needs {EXPERTS}.1.gate_proj quantized"):
        checkpoint.moe(EXPERTS)
    with pytest.raises(ValueError, match=f"needs experts 2 to 4 of {EXPERTS}, got 3"):
        checkpoint.moe(EXPERTS, 2, 3)


def test_no_checkpoint(tmp_path):
    with pytest.raises(ValueError, match="needs to be a checkpoint's folder"):
        Checkpoint(tmp_path / "none")
    with pytest.raises(ValueError, match="needs a quantization_config in config.json, or hf_quant"):
        Checkpoint(tmp_path)
    (tmp_path / "config.json").write_text("{")
    with pytest.raises(ValueError, match="config.json needs to be JSON"):
        Checkpoint(tmp_path)


def test_the_file_is_mapped(tmp_path):
    """What is read is the file's own memory, not a copy."""
    write(tmp_path, MODELOPT, stored(MODELOPT, Q, layer(16, 64)))
    checkpoint = Checkpoint(tmp_path)
    data = checkpoint.weight(Q).data
    assert torch.equal(data, load_file(tmp_path / "model.safetensors")[f"{Q}.weight"])
    maps = Path("/proc/self/maps").read_text().splitlines()
    ranges = [line.split()[0].split("-") for line in maps if str(tmp_path) in line]
    assert any(int(low, 16) <= data.data_ptr() < int(high, 16) for low, high in ranges)
