"""Make NVFP4 checkpoints of small models with NVIDIA's ModelOpt.

    .venv-interop/bin/python tests/interop/with_modelopt.py OUT [VARIANT ...]

Each is made as ModelOpt's examples do: mtq.quantize, then export_hf_checkpoint.
"""

import copy
import sys
from pathlib import Path
from typing import Any
from unittest import mock

import modelopt.torch.quantization as mtq
import modelopt_on_cpu  # noqa: F401, it makes the simulation run on a CPU
import torch
from modelopt.torch.export import export_hf_checkpoint, unified_export_hf
from modelopt.torch.quantization.qtensor import FP8QTensor, NVFP4QTensor
from recording import Maker, Recorded, calibration_tokens, make_all, recorded, tensors_of
from torch import Tensor, nn
from transformers import PreTrainedModel

FP8 = {"num_bits": (4, 3), "axis": None}
NVFP4 = {"num_bits": (2, 1), "block_sizes": {-1: 16, "type": "dynamic", "scale_bits": (4, 3)}}
ATTENTION, HEAD = "*self_attn*", "*lm_head*"
CACHE_IN_FLOATS = [{"quantizer_name": "*bmm_quantizer", "enable": False}]
"""The simulation leaves the key-value cache in floats, as load_model does."""


def with_cache(kv: dict[str, Any]) -> dict[str, Any]:
    default = copy.deepcopy(mtq.NVFP4_DEFAULT_CFG)
    return mtq.update_quant_cfg_with_kv_cache_quant(default, kv["quant_cfg"])


def with_other(layers: str, weight: dict[str, Any], inputs: dict[str, Any]) -> dict[str, Any]:
    """Another form in the layers that match a pattern than in the others."""
    made = copy.deepcopy(mtq.NVFP4_DEFAULT_CFG)
    made["quant_cfg"] += [
        {"quantizer_name": f"{layers}{each}_quantizer", **rule}
        for each, rule in (("weight", weight), ("input", inputs))
        if rule
    ]
    return made


def maker(quantization: dict[str, Any]) -> Maker:
    def make(model: PreTrainedModel, folder: Path) -> Recorded:
        def calibrate(model: nn.Module) -> None:
            with torch.no_grad():
                model(calibration_tokens())

        model = mtq.quantize(model, quantization, calibrate)
        found: Recorded = {}
        fuse = unified_export_hf.requantize_resmooth_fused_llm_layers

        # The export first gives q, k, v and gate, up one global scale. Only after that does the
        # simulation compute what the file will say.
        def fused(model: nn.Module) -> None:
            fuse(model)
            with mtq.set_quantizer_by_cfg_context(model, CACHE_IN_FLOATS):
                found.update(recorded(model))

        with mock.patch.object(unified_export_hf, fuse.__name__, fused), torch.no_grad():
            export_hf_checkpoint(model, dtype=torch.float32, export_dir=folder)
        return found | {"weights": dequantized(tensors_of(folder))}

    return make


def dequantized(tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    """The weights of all quantized layers, by ModelOpt's own code."""
    found = {}
    for name, data in tensors.items():
        module, _, leaf = name.rpartition(".")
        scale = tensors.get(f"{module}.weight_scale")
        if leaf != "weight" or scale is None:
            continue
        if data.dtype == torch.uint8:
            shape = torch.Size((data.shape[0], 2 * data.shape[1]))
            block = shape[1] // scale.shape[1]
            p = tensors[f"{module}.weight_scale_2"]
            tensor = NVFP4QTensor(shape, torch.float32, data)
            found[module] = tensor.dequantize(
                scale=scale, double_scale=p, block_sizes={-1: block}, dtype=torch.float32
            )
        else:
            tensor = FP8QTensor(data.shape, torch.float32, data)
            found[module] = tensor.dequantize(scale=scale, dtype=torch.float32)
    return found


MAKERS = {
    name: (model, maker(quantization))
    for name, model, quantization in (
        ("modelopt-default", "llama", mtq.NVFP4_DEFAULT_CFG),
        ("modelopt-awq-lite", "llama", mtq.NVFP4_AWQ_LITE_CFG),
        ("modelopt-four-over-six", "llama", mtq.NVFP4_FOUR_OVER_SIX_CFG),
        ("modelopt-w4a16", "llama", mtq.W4A16_NVFP4_CFG),
        ("modelopt-head", "llama", with_other(HEAD, {"cfg": NVFP4}, {"cfg": NVFP4})),
        ("modelopt-fp8-cache", "llama", with_cache(mtq.FP8_KV_CFG)),
        ("modelopt-nvfp4-cache", "llama", with_cache(mtq.NVFP4_KV_CFG)),
        ("modelopt-mixed-fp8", "llama", with_other(ATTENTION, {"cfg": FP8}, {"cfg": FP8})),
        ("modelopt-mixed-w4a16", "llama", with_other(ATTENTION, {}, {"enable": False})),
        ("modelopt-w4a8", "llama", mtq.W4A8_NVFP4_FP8_CFG),
        ("modelopt-svdquant", "llama", mtq.NVFP4_SVDQUANT_DEFAULT_CFG),
        ("modelopt-mixtral", "mixtral", mtq.NVFP4_DEFAULT_CFG),
        ("modelopt-deepseek-v3", "deepseek_v3", mtq.NVFP4_DEFAULT_CFG),
        ("modelopt-gpt-oss", "gpt_oss", mtq.NVFP4_DEFAULT_CFG),
        ("modelopt-llama4", "llama4", mtq.NVFP4_DEFAULT_CFG),
        ("modelopt-experts-only", "qwen3_moe", mtq.NVFP4_EXPERTS_ONLY_CFG),
        ("modelopt-experts-w4a16", "qwen3_moe", mtq.W4A16_NVFP4_CFG),
        ("modelopt-shared-expert", "qwen2_moe", mtq.NVFP4_DEFAULT_CFG),
        ("modelopt-experts-awq", "qwen3_moe", mtq.NVFP4_AWQ_LITE_CFG),
    )
}

if __name__ == "__main__":
    make_all(Path(sys.argv[1]), MAKERS, "nvidia-modelopt")
