"""Small models for makers' tools to quantize, and the record of what each tool computes with them.

It runs in the environment of the makers' tools, .venv-interop, which lacks this package. Each tool
writes a checkpoint's folder, and a file of torch beside it:

    ids      int64 [1, T], the tokens
    logits   float32 [T, V], from the tool's own simulation of NVFP4
    layers   a module's input and output in that simulation, by the module's name
    weights  the weights of the checkpoint, dequantized by the tool's own code, by layer
    versions the tool's and those that it stands on
"""

import sys
import time
import traceback
from collections.abc import Callable
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file
from torch import Tensor, nn
from transformers import (
    AutoModelForCausalLM,
    DeepseekV3Config,
    GptOssConfig,
    Llama4TextConfig,
    LlamaConfig,
    MixtralConfig,
    PreTrainedModel,
    Qwen2MoeConfig,
    Qwen3MoeConfig,
)

SIZES = dict(
    vocab_size=256, hidden_size=128, num_hidden_layers=2, num_attention_heads=4,
    num_key_value_heads=2, head_dim=32, max_position_embeddings=128, tie_word_embeddings=False,
    bos_token_id=1, eos_token_id=2, pad_token_id=0,
)  # fmt: skip
LATENT = {k: v for k, v in SIZES.items() if k not in ("head_dim", "num_key_value_heads")}
CONFIGS = {
    "deepseek_v3": lambda: DeepseekV3Config(
        **LATENT, num_key_value_heads=4, intermediate_size=192, moe_intermediate_size=64,
        n_routed_experts=8, n_group=2, topk_group=1, num_experts_per_tok=2, n_shared_experts=1,
        first_k_dense_replace=1, q_lora_rank=64, kv_lora_rank=64, qk_rope_head_dim=16,
        qk_nope_head_dim=16, v_head_dim=32,
    ),
    "gpt_oss": lambda: GptOssConfig(
        **SIZES, intermediate_size=96, num_local_experts=4, num_experts_per_tok=2
    ),
    "llama4": lambda: Llama4TextConfig(
        **SIZES, intermediate_size=96, intermediate_size_mlp=192, num_local_experts=4,
        num_experts_per_tok=1,
    ),
    "llama": lambda: LlamaConfig(**SIZES, intermediate_size=192),
    "mixtral": lambda: MixtralConfig(
        **SIZES, intermediate_size=96, num_local_experts=4, num_experts_per_tok=2
    ),
    "qwen2_moe": lambda: Qwen2MoeConfig(
        **SIZES, intermediate_size=192, moe_intermediate_size=64,
        shared_expert_intermediate_size=96, num_experts=4, num_experts_per_tok=2,
    ),
    "qwen3_moe": lambda: Qwen3MoeConfig(
        **SIZES, intermediate_size=192, moe_intermediate_size=64, num_experts=4,
        num_experts_per_tok=2, norm_topk_prob=True, mlp_only_layers=[0],
    ),
}  # fmt: skip
TOKENS = 32

Recorded = dict[str, Any]
Maker = Callable[[PreTrainedModel, Path], Recorded]


def small_model(name: str, folder: Path) -> PreTrainedModel:
    """A model in float32 with random weights of unit gain, the same at each call.

    It is read from the folder, as tools expect: they ask for its class and look it up again.
    """
    torch.manual_seed(0)
    model = AutoModelForCausalLM.from_config(CONFIGS[name](), dtype=torch.float32)
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.dim() >= 2:
                parameter.normal_(0, parameter.shape[-1] ** -0.5)
    model.save_pretrained(folder)
    return AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).eval()


def calibration_tokens() -> Tensor:
    """The tokens of the calibration, [8, TOKENS]."""
    return torch.randint(3, SIZES["vocab_size"], (8, TOKENS), generator=_seeded(1))


def _seeded(seed: int) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


@torch.inference_mode()
def recorded(model: nn.Module) -> Recorded:
    """Run the model, and return the tokens, the logits, and each layer's input and output.

    The layers are the linear ones, and the whole MLP or mixture of experts of each block.
    """
    layers, hooks = {}, []

    def hook_of(name: str) -> Callable[..., None]:
        def hook(module: nn.Module, args: tuple, output: Any) -> None:
            y = output[0] if isinstance(output, tuple) else output
            layers[name] = args[0].clone(), y.clone()

        return hook

    for name, module in model.named_modules():
        weight = getattr(module, "weight", None)
        linear = getattr(weight, "ndim", 0) == 2 and not isinstance(module, nn.Embedding)
        if (linear or name.endswith(".mlp")) and ".experts." not in name:
            hooks.append(module.register_forward_hook(hook_of(name)))
    ids = torch.randint(3, SIZES["vocab_size"], (1, TOKENS), generator=_seeded(2))
    logits = model(ids).logits[0].float()
    for hook in hooks:
        hook.remove()
    return {"ids": ids, "logits": logits, "layers": layers}


def tensors_of(folder: Path) -> dict[str, Tensor]:
    found: dict[str, Tensor] = {}
    for file in sorted(folder.glob("*.safetensors")):
        found |= load_file(file)
    return found


def make_all(out: Path, makers: dict[str, tuple[str, Maker]], *packages: str) -> None:
    """Make each checkpoint in a folder of its own, named as the variant; go on after errors.

    makers: by variant, the model's name and what quantizes it, exports it and returns the record.
    packages: those whose versions are recorded.
    """
    versions = {package: version(package) for package in (*packages, "torch", "transformers")}
    only = sys.argv[2:]
    for name, (model, maker) in makers.items():
        if only and name not in only:
            continue
        folder, start = out / name, time.monotonic()
        folder.mkdir(parents=True, exist_ok=True)
        try:
            torch.manual_seed(0)
            made = maker(small_model(model, out / "sources" / model), folder) | {
                "versions": versions
            }
            torch.save(made, out / f"{name}.pt")
            print(f"{name}: made in {time.monotonic() - start:.0f} s", flush=True)
        except Exception as error:
            traceback.print_exc()
            said = f"{type(error).__name__}: {str(error).strip().splitlines()[0]}"
            torch.save({"not made": said}, out / f"{name}.pt")
