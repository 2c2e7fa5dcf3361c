"""Checkpoints of random weights in the sizes of known models: speed does not depend on values."""

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor

FLOATS, W4A4, W4A16 = "bf16", "w4a4", "w4a16"
"""The folders of one model's checkpoints."""


class Model(NamedTuple):
    """The sizes of a model, as its configuration has them."""

    architecture: str
    model_type: str
    hidden: int
    intermediate: int
    """The MLP's, or one expert's."""
    heads: int
    kv_heads: int
    layers: int
    vocabulary: int
    experts: int = 0
    top_k: int = 0
    head_dim: int = 128

    @property
    def linears(self) -> dict[str, tuple[int, int]]:
        """The (N, K) of each quantized weight of a layer, by its name in the layer."""
        queries, keys = self.heads * self.head_dim, self.kv_heads * self.head_dim
        attention = {
            "q_proj": (queries, self.hidden),
            "k_proj": (keys, self.hidden),
            "v_proj": (keys, self.hidden),
            "o_proj": (self.hidden, queries),
        }
        mlp = {
            "gate_proj": (self.intermediate, self.hidden),
            "up_proj": (self.intermediate, self.hidden),
            "down_proj": (self.hidden, self.intermediate),
        }
        rooms = [f"experts.{e}." for e in range(self.experts)] or [""]
        return {f"self_attn.{name}": shape for name, shape in attention.items()} | {
            f"mlp.{room}{name}": shape for room in rooms for name, shape in mlp.items()
        }

    def config(self) -> dict[str, Any]:
        """The contents of config.json, without a quantization scheme."""
        experts = {
            "num_experts": self.experts,
            "num_experts_per_tok": self.top_k,
            "moe_intermediate_size": self.intermediate,
            "norm_topk_prob": True,
            "decoder_sparse_step": 1,
            "mlp_only_layers": [],
        }
        return (experts if self.experts else {}) | {
            "architectures": [self.architecture],
            "model_type": self.model_type,
            "hidden_size": self.hidden,
            "intermediate_size": self.intermediate,
            "num_hidden_layers": self.layers,
            "num_attention_heads": self.heads,
            "num_key_value_heads": self.kv_heads,
            "head_dim": self.head_dim,
            "vocab_size": self.vocabulary,
            "max_position_embeddings": 4096,
            "rms_norm_eps": 1e-5,
            "rope_theta": 500000.0,
            "hidden_act": "silu",
            "tie_word_embeddings": False,
            "attention_bias": False,
            "torch_dtype": "bfloat16",
            "bos_token_id": 1,
            "eos_token_id": 2,
        }


MODELS = {
    "llama-3.1-8b": Model("LlamaForCausalLM", "llama", 4096, 14336, 32, 8, 32, 128256),
    "qwen3-30b-a3b": Model(
        "Qwen3MoeForCausalLM", "qwen3_moe", 2048, 768, 32, 4, 48, 151936, 128, 8
    ),
}


def write(model: Model, folder: Path) -> None:
    """Write one random model in bf16, and in NVFP4 as ModelOpt stores it: W4A4 and W4A16.

    All layers have the same weights. The bf16 weights are the dequantized NVFP4 ones.
    """
    from safetensors.torch import save_file

    device = "cuda" if torch.cuda.is_available() else "cpu"
    with torch.device(device):
        generator = torch.Generator(device).manual_seed(0)
        floats, packed = _layer(model, generator)
        others = {
            name: torch.randn(model.vocabulary, model.hidden, generator=generator) * 0.02
            for name in ("model.embed_tokens.weight", "lm_head.weight")
        } | {"model.norm.weight": torch.ones(model.hidden)}
    others = {name: x.bfloat16().cpu() for name, x in others.items()}
    for kind, layer in ((FLOATS, floats), (W4A4, packed)):
        (folder / kind).mkdir(parents=True)
        files = {"others.safetensors": others} | {
            f"layer-{index:02}.safetensors": {
                f"model.layers.{index}.{name}": x for name, x in layer.items()
            }
            for index in range(model.layers)
        }
        for name, tensors in files.items():
            save_file(tensors, folder / kind / name, {"format": "pt"})
        weight_map = {tensor: name for name, tensors in files.items() for tensor in tensors}
        index = json.dumps({"metadata": {}, "weight_map": weight_map})
        (folder / kind / "model.safetensors.index.json").write_text(index)
    (folder / W4A16).mkdir()
    for path in (folder / W4A4).iterdir():
        (folder / W4A16 / path.name).symlink_to(Path("..", W4A4, path.name))
    for kind in (FLOATS, W4A4, W4A16):
        config = json.dumps(model.config() | _scheme(kind))
        (folder / kind / "config.json").write_text(config)


def _layer(model: Model, generator: torch.Generator) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
    """The tensors of a layer in bf16, and those in NVFP4."""
    norms = dict(_norms(model))
    floats, packed = dict(norms), dict(norms)
    for name, (n, k) in model.linears.items():
        in_floats, in_4_bits = _linear(n, k, generator)
        floats |= {f"{name}.{tensor}": x.cpu() for tensor, x in in_floats.items()}
        packed |= {f"{name}.{tensor}": x.cpu() for tensor, x in in_4_bits.items()}
    return floats, packed


def _norms(model: Model) -> Iterator[tuple[str, Tensor]]:
    sizes = {"input_layernorm": model.hidden, "post_attention_layernorm": model.hidden}
    if model.experts:
        sizes |= {"self_attn.q_norm": model.head_dim, "self_attn.k_norm": model.head_dim}
        router = torch.randn(model.experts, model.hidden) * 0.02
        yield "mlp.gate.weight", router.bfloat16().cpu()
    for name, size in sizes.items():
        yield f"{name}.weight", torch.ones(size, dtype=torch.bfloat16).cpu()


def _linear(
    n: int, k: int, generator: torch.Generator
) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
    """A weight [n, k] in bf16, and in NVFP4 by ModelOpt's names."""
    import nvfp4

    w = torch.randn(n, k, generator=generator).bfloat16() * k**-0.5
    p = torch.tensor(6 * k**-0.5 / 2688)
    q = nvfp4.quantize(w, p, "linear")
    return {"weight": nvfp4.dequantize(q, torch.bfloat16)}, {
        "weight": q.data,
        "weight_scale": q.scales,
        "weight_scale_2": p,
        "input_scale": torch.tensor(8 / 2688),
    }


def _scheme(kind: str) -> dict[str, Any]:
    if kind == FLOATS:
        return {}
    numbers = {"num_bits": 4, "type": "float", "group_size": 16, "dynamic": False}
    group: dict[str, Any] = {"targets": ["Linear"], "weights": numbers}
    if kind == W4A4:
        group["input_activations"] = numbers
    return {
        "quantization_config": {
            "quant_method": "modelopt",
            "quant_algo": "NVFP4" if kind == W4A4 else "W4A16_NVFP4",
            "ignore": ["lm_head", "*.mlp.gate"],
            "config_groups": {"group_0": group},
        }
    }
