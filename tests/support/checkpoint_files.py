"""Checkpoints made by hand, tensor by tensor, and models of random weights to convert."""

import json
import re
from collections.abc import Mapping
from pathlib import Path

import torch
from safetensors.torch import save_file
from torch import Tensor

import nvfp4
from nvfp4 import QuantizedTensor
from nvfp4.checkpoints import Format, Group, Scheme

WORDS = re.findall(
    "[a-z]+", "once upon a time in the small village by sea there lived alice rabbit was and of to"
)


def layer(n: int, k: int, scale: float = 1.0) -> QuantizedTensor:
    """A random weight, its scales linear, its values about `scale`."""
    w = torch.randn(n, k) * scale
    return nvfp4.quantize(w, scale_layout="linear")


def stored(format: Format, module: str, weight: QuantizedTensor) -> dict[str, Tensor]:
    """A layer's tensors as the format has them; of a divisor S = 1/p, as its makers write it."""
    p = weight.global_scale.reshape(format.scale_shape)
    return {
        f"{module}.{format.data}": weight.data.clone(),
        f"{module}.{format.scales}": weight.scales.clone(),
        f"{module}.{format.global_scale}": 1 / p if format.divides else p.clone(),
    }


def write(
    folder: Path,
    format: Format,
    tensors: Mapping[str, Tensor],
    ignore: tuple[str, ...] = (),
    calibrated: bool = False,
    activation: str = "nvfp4",
) -> Path:
    """A checkpoint of these tensors."""
    folder.mkdir(exist_ok=True)
    save_file(dict(tensors), folder / "model.safetensors")
    scheme = Scheme(format, (Group(calibrated=calibrated, activation=activation),), ignore)
    config = {"model_type": "llama", "quantization_config": scheme.config()}
    (folder / "config.json").write_text(json.dumps(config))
    return folder


SMALL = dict(
    vocab_size=len(WORDS) + 1, hidden_size=64, num_hidden_layers=2, num_attention_heads=4,
    num_key_value_heads=2, max_position_embeddings=128, pad_token_id=0, bos_token_id=0,
    eos_token_id=0, initializer_range=0.1,
)  # fmt: skip
MIXTURE = dict(num_experts_per_tok=2, moe_intermediate_size=48, num_experts=4)
MODELS = {
    # name: the class's name in transformers, and its configuration
    "llama": ("Llama", dict(intermediate_size=96)),
    "qwen2-moe": (
        "Qwen2Moe",
        dict(intermediate_size=96, shared_expert_intermediate_size=96, **MIXTURE),
    ),
    "qwen3-moe": ("Qwen3Moe", dict(intermediate_size=96, head_dim=16, **MIXTURE)),
    "deepseek-v3": (
        "DeepseekV3",
        dict(
            intermediate_size=96, moe_intermediate_size=48, n_routed_experts=4, n_group=2,
            topk_group=1, num_experts_per_tok=2, first_k_dense_replace=1, q_lora_rank=32,
            kv_lora_rank=32, qk_rope_head_dim=16, qk_nope_head_dim=16, v_head_dim=16,
            num_key_value_heads=4,
        ),
    ),
    "deepseek-v4": (
        "DeepseekV4",
        dict(
            moe_intermediate_size=48, n_routed_experts=4, num_local_experts=4,
            num_experts_per_tok=2, head_dim=32, q_lora_rank=32, num_hidden_layers=3,
        ),
    ),
    "gpt-oss": (
        "GptOss",
        dict(intermediate_size=96, head_dim=16, num_local_experts=4, num_experts_per_tok=2),
    ),
    "mixtral": (
        "Mixtral",
        dict(intermediate_size=48, num_local_experts=4, num_experts_per_tok=2),
    ),
}  # fmt: skip


def save_model(folder: Path, name: str, own_names: bool = False, **changes: object) -> Path:
    """One of MODELS with random bf16 weights and a word tokenizer; with `own_names` as transformers
    has it in memory, a block's experts in one tensor.
    """
    import transformers
    from tokenizers import Tokenizer, models, pre_tokenizers

    kind, config = MODELS[name]
    made = getattr(transformers, f"{kind}Config")(**(SMALL | config | changes))
    model = getattr(transformers, f"{kind}ForCausalLM")(made).bfloat16()
    for parameter_name, parameter in model.named_parameters():
        if parameter_name.endswith("proj_bias"):  # of gpt-oss' experts, which begin as zeros
            parameter.data.normal_(std=0.25)
    model.save_pretrained(folder, save_original_format=not own_names)
    words = {word: i for i, word in enumerate(["<unk>", *WORDS])}
    tokenizer = Tokenizer(models.WordLevel(words, unk_token="<unk>"))
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    transformers.PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, unk_token="<unk>", pad_token="<unk>"
    ).save_pretrained(folder)
    return folder
