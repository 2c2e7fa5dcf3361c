"""Make NVFP4 checkpoints of small models with llm-compressor.

    .venv-interop/bin/python tests/interop/with_llmcompressor.py OUT [VARIANT ...]

Each is made as llm-compressor's examples do: oneshot, then save_pretrained with save_compressed.
"""

import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from compressed_tensors.compressors import BaseCompressor
from compressed_tensors.compressors.nvfp4.helpers import unpack_fp4_from_uint8
from compressed_tensors.quantization import (
    QuantizationScheme,
    disable_quantization,
    enable_quantization,
)
from compressed_tensors.quantization.lifecycle.forward import dequantize
from compressed_tensors.quantization.quant_scheme import preset_name_to_scheme
from datasets import Dataset
from llmcompressor import oneshot
from llmcompressor.modifiers import Modifier
from llmcompressor.modifiers.quantization import GPTQModifier, QuantizationModifier
from recording import Maker, Recorded, calibration_tokens, make_all, recorded, tensors_of
from tokenizers import Tokenizer
from tokenizers.models import WordLevel
from torch import Tensor
from transformers import PreTrainedModel, PreTrainedTokenizerFast

FLOATS = ["lm_head", "re:.*mlp.gate$", "re:.*shared_expert_gate$"]
"""The head and the routers, which examples leave in floats."""

FP8_CACHE = dict(num_bits=8, type="float", strategy="tensor", dynamic=False, symmetric=True)


def maker(modifier: Callable[[], Modifier]) -> Maker:
    def make(model: PreTrainedModel, folder: Path) -> Recorded:
        ids = calibration_tokens()
        data = Dataset.from_dict(
            {"input_ids": ids.tolist(), "attention_mask": torch.ones_like(ids).tolist()}
        )
        oneshot(
            model=model,
            dataset=data,
            recipe=[modifier()],
            max_seq_length=ids.shape[1],
            num_calibration_samples=len(ids),
            processor=tokenizer(),
        )
        found = without_cache(model)
        schemes = {
            name: scheme
            for name, module in model.named_modules()
            if (scheme := getattr(module, "quantization_scheme", None)) is not None
        }
        model.save_pretrained(folder, save_compressed=True)
        return found | {"weights": dequantized(tensors_of(folder), schemes)}

    return make


def without_cache(model: PreTrainedModel) -> Recorded:
    """Run the model with its cache in floats, as load_model has it."""
    attentions = [module for module in model.modules() if hasattr(module, "kv_cache")]
    for module in attentions:
        disable_quantization(module)
    found = recorded(model)
    for module in attentions:
        enable_quantization(module)
    return found


def tokenizer() -> PreTrainedTokenizerFast:
    """A tokenizer of one word; oneshot needs one, though the data are tokens already."""
    words = Tokenizer(WordLevel({"<unk>": 0}, unk_token="<unk>"))
    return PreTrainedTokenizerFast(tokenizer_object=words, unk_token="<unk>", pad_token="<unk>")


def dequantized(
    tensors: dict[str, Tensor], schemes: dict[str, QuantizationScheme]
) -> dict[str, Tensor]:
    """The weights of all quantized layers, by the code of compressed-tensors."""
    found = {}
    for module, scheme in schemes.items():
        own = {
            name.removeprefix(f"{module}."): tensor
            for name, tensor in tensors.items()
            if name.rpartition(".")[0] == module
        }
        if not own or scheme.weights is None:
            continue
        if "weight_packed" in own:
            # its functions in float32; the compressor itself would round to bfloat16
            n, half_k = own["weight_packed"].shape
            found[module] = dequantize(
                unpack_fp4_from_uint8(own["weight_packed"], n, 2 * half_k, dtype=torch.float32),
                own["weight_scale"].float(),
                args=scheme.weights,
                global_scale=own["weight_global_scale"],
            )
        else:
            compressor = BaseCompressor.get_value_from_registry(scheme.format)
            found[module] = compressor.decompress(own, scheme)["weight"].float()
    return found


def plain(scheme: str, **options: Any) -> Maker:
    return maker(
        lambda: QuantizationModifier(targets="Linear", scheme=scheme, ignore=FLOATS, **options)
    )


def gptq(scheme: str) -> Maker:
    return maker(lambda: GPTQModifier(targets="Linear", scheme=scheme, ignore=FLOATS))


def mixed(attention: str) -> Maker:
    """NVFP4 in the MLPs, another scheme in the attention's layers."""
    parts = {"NVFP4": r"re:.*mlp\..*_proj$", attention: r"re:.*self_attn\..*_proj$"}
    groups = {
        f"group_{index}": preset_name_to_scheme(scheme, [target])
        for index, (scheme, target) in enumerate(parts.items())
    }
    return maker(lambda: QuantizationModifier(config_groups=groups, ignore=FLOATS))


MAKERS = {
    "llmcompressor-nvfp4": ("llama", plain("NVFP4")),
    "llmcompressor-nvfp4a16": ("llama", plain("NVFP4A16")),
    "llmcompressor-gptq": ("llama", gptq("NVFP4")),
    "llmcompressor-mixed-fp8": ("llama", mixed("FP8_DYNAMIC")),
    "llmcompressor-mixed-a16": ("llama", mixed("NVFP4A16")),
    "llmcompressor-fp8-cache": ("llama", plain("NVFP4", kv_cache_scheme=FP8_CACHE)),
    "llmcompressor-deepseek-v3": ("deepseek_v3", plain("NVFP4")),
    "llmcompressor-gpt-oss": ("gpt_oss", plain("NVFP4")),
    "llmcompressor-mixtral": ("mixtral", plain("NVFP4A16")),
    "llmcompressor-qwen3-moe": ("qwen3_moe", plain("NVFP4")),
    "llmcompressor-shared-expert": ("qwen2_moe", plain("NVFP4")),
}

if __name__ == "__main__":
    make_all(Path(sys.argv[1]), MAKERS, "llmcompressor", "compressed-tensors")
