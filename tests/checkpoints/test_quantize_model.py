"""Quantizing of any torch model in memory, and the checkpoint that is written of it."""

import subprocess
import sys

import pytest
import torch
from cases import same_bits
from paths import ROOT
from torch import nn

import nvfp4
from nvfp4.checkpoints import FORMATS, Checkpoint, save_model
from nvfp4.layers import Linear, MoE, SwiGLUMLP


class Model(nn.Module):
    """Layers to quantize, and one of each kind that stays in floats."""

    def __init__(self) -> None:
        super().__init__()
        self.embed = nn.Embedding(10, 32)
        self.inner = nn.Sequential(nn.Linear(32, 48), nn.ReLU(), nn.Linear(48, 32, bias=False))
        self.narrow = nn.Linear(24, 32)
        self.router = nn.Linear(32, 4)
        self.double = nn.Linear(32, 32).double()
        self.tied = nn.Linear(32, 10, bias=False)
        self.tied.weight = self.embed.weight

    def get_output_embeddings(self):
        return None

    def forward(self, ids):
        return self.tied(self.inner(self.embed(ids)))


def test_linear_layers_are_replaced_and_the_rest_stays():
    model = Model().eval()
    want = Linear.from_float(model.inner[0])
    assert nvfp4.quantize_model(model) is model
    assert [n for n, m in model.named_modules() if isinstance(m, Linear)] == ["inner.0", "inner.2"]
    x = torch.randn(3, 32)
    same_bits(model.inner[0](x), want(x))
    assert not model.inner[0].training and model.inner[2].activation == "nvfp4"
    assert model(torch.tensor([1, 2])).shape == (2, 10)


def test_excluded_layers_stay_in_floats():
    model = nvfp4.quantize_model(Model(), exclude=["*.0"], activation="bf16")
    assert type(model.inner[0]) is nn.Linear and model.inner[2].activation == "bf16"


@pytest.mark.parametrize(
    "model, options, message",
    [
        (Model(), dict(exclude=["*.o_proj"]), r"exclude needs patterns .*, got '\*.o_proj'"),
        (Model(), dict(activation="fp8"), "activation needs 'nvfp4' or 'bf16', got 'fp8'"),
        (Model(), dict(exclude=["inner"]), "model needs to be a module with linear layers"),
        (nn.Linear(16, 16), {}, "model needs to be a module with linear layers .*, got Linear"),
    ],
)
def test_it_refuses(model, options, message):
    with pytest.raises(ValueError, match=f"nvfp4.quantize_model: {message}"):
        nvfp4.quantize_model(model, **options)


class Experts(nn.Module):
    """A block's experts as transformers holds them."""

    def __init__(self, act_fn) -> None:
        super().__init__()
        self.gate_up_proj = nn.Parameter(torch.randn(3, 64, 48))
        self.down_proj = nn.Parameter(torch.randn(3, 48, 32))
        self.act_fn = act_fn

    def forward(self, hidden_states, top_k_index, top_k_weights):
        raise AssertionError("runs in NVFP4")


def test_experts_of_a_known_gating_function_are_replaced():
    known, other = Experts(nn.functional.silu), Experts(torch.sin)
    model = nvfp4.quantize_model(nn.ModuleDict({"known": known, "other": other}))
    assert type(model.other) is Experts
    gate, up = known.gate_up_proj.chunk(2, dim=1)
    want = MoE.from_float(gate, up, known.down_proj)
    x, ids, weights = torch.randn(5, 48), torch.randint(3, (5, 2)), torch.rand(5, 2)
    same_bits(model.known(x, ids, weights), want(x, weights, ids))


@pytest.mark.parametrize("format", FORMATS)
def test_a_saved_model_is_read_back_to_the_bit(tmp_path, format):
    w = torch.randn(3, 32, 48), torch.randn(3, 32, 48), torch.randn(3, 48, 32)
    p = torch.tensor(2.0**-6)
    gate, up, down = nn.Linear(48, 32, False), nn.Linear(48, 32, False), nn.Linear(32, 48, False)
    layers = {
        "linear": Linear.from_float(nn.Linear(48, 32), p),
        "mlp": SwiGLUMLP.from_float(gate, up, down),
        "experts": MoE.from_float(*w, p, torch.tensor([0.5, 1.0, 2.0])),
        "norm": nn.LayerNorm(48),
    }
    model = nn.ModuleDict({"block": nn.ModuleDict(layers)})
    save_model(model, tmp_path / "out", format, shard_size="20KB")
    checkpoint = Checkpoint(tmp_path / "out")
    assert len(checkpoint.modules) == 1 + 3 + 9
    same_bits(checkpoint.unquantized("block.norm"), layers["norm"].weight)
    again = {
        "linear": checkpoint.linear("block.linear"),
        "mlp": checkpoint.swiglu_mlp("block.mlp"),
        "experts": checkpoint.moe("block.experts"),
    }
    exact = format == "modelopt"  # the other holds 1 / p: the last bit of p may differ
    for name, layer in again.items():
        got, want = layer.state_dict(), layers[name].state_dict()
        assert got.keys() == want.keys()
        for key, tensor in want.items():
            if exact or tensor.dtype != torch.float32:
                same_bits(got[key].flatten(), tensor.flatten())
            else:
                torch.testing.assert_close(got[key].flatten(), tensor.flatten(), rtol=2e-7, atol=0)


def test_a_layer_that_no_checkpoint_holds_is_refused(tmp_path):
    fused = Linear.fused([nn.Linear(16, 32, False), nn.Linear(16, 32, False)])
    with pytest.raises(ValueError, match="qkv needs one global scale .*, got 2"):
        save_model(nn.ModuleDict({"qkv": fused}), tmp_path / "out")
    with pytest.raises(ValueError, match="model needs layers of nvfp4.layers, got none"):
        save_model(nn.Linear(16, 16), tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_models_are_quantized_without_the_packages_of_checkpoints():
    extras = ("safetensors", "transformers", "huggingface_hub", "accelerate", "tokenizers")
    code = f"""
import sys
sys.modules.update(dict.fromkeys({extras}))
import nvfp4, torch
model = nvfp4.quantize_model(torch.nn.Sequential(torch.nn.Linear(16, 16)))
assert type(model[0]) is nvfp4.layers.Linear
"""
    subprocess.run([sys.executable, "-c", code], cwd=ROOT, check=True)
