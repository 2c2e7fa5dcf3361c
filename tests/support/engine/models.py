"""Small models with random weights, of architectures that differ in what is fused or shared."""

import json
import shutil
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
import transformers
from safetensors.torch import load_file, save_file
from torch import Tensor

from nvfp4.checkpoints import COMPRESSED_TENSORS, MODELOPT, Group
from nvfp4.checkpoints.checkpoint import Checkpoint
from nvfp4.checkpoints.convert import Options, convert
from nvfp4.checkpoints.files import SINGLE_FILE
from nvfp4.checkpoints.names import siblings_of
from nvfp4.checkpoints.parsing import read_json
from nvfp4.checkpoints.schemes import CONFIG_FILE, PRE_QUANT_SCALE, QUANT_CONFIG_FILE
from nvfp4.spec.format import GLOBAL_SCALE_DIVISOR

SIZES = {
    "vocab_size": 512,
    "hidden_size": 128,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 32,
    "max_position_embeddings": 512,
    "tie_word_embeddings": False,
    "initializer_range": 0.1,
}
EXPERTS = {"num_experts_per_tok": 2, "moe_intermediate_size": 32, "norm_topk_prob": True}
ARCHITECTURES: dict[str, tuple[type, dict[str, Any]]] = {
    # q, k and v fused with biases, fewer kv heads; gate and up fused
    "qwen2": (transformers.Qwen2Config, {"intermediate_size": 96}),
    "qwen3_moe": (
        transformers.Qwen3MoeConfig,
        EXPERTS | {"num_experts": 4, "intermediate_size": 96, "mlp_only_layers": [0]},
    ),
    # a shared expert beside the others
    "qwen2_moe": (
        transformers.Qwen2MoeConfig,
        EXPERTS
        | {"num_experts": 4, "intermediate_size": 96, "shared_expert_intermediate_size": 64},
    ),
    # other names: w1, w3, w2
    "mixtral": (
        transformers.MixtralConfig,
        {"num_local_experts": 4, "num_experts_per_tok": 2, "intermediate_size": 64},
    ),
}
DENSE, *MIXTURES = ARCHITECTURES
LOADED = {
    # no gate: relu2 of up. It is not served: vLLM's Mamba needs a GPU
    "nemotron_h": (
        transformers.NemotronHConfig,
        EXPERTS
        | dict(
            num_hidden_layers=2, layers_block_type=["moe", "attention"], intermediate_size=96,
            n_routed_experts=4, moe_shared_expert_intermediate_size=96, n_group=1, topk_group=1,
            mamba_num_heads=4, n_groups=1, mamba_head_dim=32, ssm_state_size=16,
        ),
    ),
}  # fmt: skip
"""Architectures whose layers are compared, without serving the model."""


STEP = lambda title, total: lambda: None  # noqa: E731  no progress bar


@dataclass(frozen=True)
class Folders:
    """A model in floats, and its NVFP4 checkpoints: one in each format, the first with calibrated
    input scales.
    """

    floats: Path
    modelopt: Path
    compressed_tensors: Path


def make(name: str, root: Path, separate_scales: bool = True) -> Folders:
    """Every layer has a global scale of its own, up's and k's about twice their siblings': one for
    all parts of a fused layer would be wrong by that factor. Without separate_scales they share it.
    """
    torch.manual_seed(0)
    config_class, sizes = (ARCHITECTURES | LOADED)[name]
    config = config_class(**SIZES | sizes)
    model = transformers.AutoModelForCausalLM.from_config(config, dtype=torch.bfloat16)
    with torch.no_grad():
        for parameter_name, parameter in model.named_parameters():
            if parameter_name.endswith(("k_proj.weight", "up_proj.weight")):
                parameter *= 2
            if parameter_name.endswith("gate_up_proj"):  # experts: gate's rows, then up's
                parameter[:, parameter.shape[1] // 2 :] *= 2
            if parameter_name.endswith("proj.bias"):
                parameter.normal_(std=0.1)
    folders = Folders(root / "floats", root / MODELOPT.name, root / COMPRESSED_TENSORS.name)
    model.save_pretrained(folders.floats)
    for folder in (folders.modelopt, folders.compressed_tensors):
        convert(folders.floats, folder, Options(folder.name, separate_scales=separate_scales), STEP)
    _add_input_scales(folders.modelopt)
    return folders


def with_pre_quant_scales(folder: Path, copy: Path) -> Path:
    """As AWQ leaves a checkpoint: factors of the layers' inputs."""
    shutil.copytree(folder, copy)
    tensors, factors = load_file(copy / SINGLE_FILE), dict[str, Tensor]()
    for module in Checkpoint(copy).modules:
        k = 2 * tensors[f"{module}.{MODELOPT.data}"].shape[1]
        factor = factors.setdefault(siblings_of(module)[0], 0.5 + torch.rand(k))
        tensors[f"{module}.{PRE_QUANT_SCALE}"] = factor.bfloat16()
    save_file(tensors, copy / SINGLE_FILE)
    return copy


def with_hf_quant_config_alone(folder: Path, copy: Path) -> Path:
    """As ModelOpt wrote them before its version 0.39."""
    shutil.copytree(folder, copy)
    config = read_json(copy / CONFIG_FILE)
    del config["quantization_config"]
    (copy / CONFIG_FILE).write_text(json.dumps(config))
    return copy


def _add_input_scales(folder: Path) -> None:
    """As if calibrated: of inputs up to 4 to 16, the same for layers on the same input."""
    checkpoint = Checkpoint(folder)
    tensors = load_file(folder / SINGLE_FILE)
    amax: dict[str, Tensor] = {}
    for module in checkpoint.modules:
        of_input = amax.setdefault(siblings_of(module)[0], 4 + 12 * torch.rand(()))
        p = of_input / GLOBAL_SCALE_DIVISOR
        tensors[f"{module}.{MODELOPT.input_global_scale}"] = p.clone()
    save_file(tensors, folder / SINGLE_FILE)
    scheme = replace(checkpoint.scheme, groups=(Group(calibrated=True),))
    config = read_json(folder / CONFIG_FILE) | {"quantization_config": scheme.config()}
    (folder / CONFIG_FILE).write_text(json.dumps(config))
    (folder / QUANT_CONFIG_FILE).write_text(json.dumps(scheme.hf_quant_config()))
