"""What tests of converting share: small models of random weights, and what is read of folders."""

import copy

import pytest
import torch
from torch import nn

import nvfp4

pytest.importorskip("transformers")
pytest.importorskip("accelerate")
pytest.importorskip("gguf")

from checkpoint_files import MODELS
from safetensors.torch import load_file

from nvfp4.checkpoints import FORMATS
from nvfp4.checkpoints.names import siblings_of
from nvfp4.layers import Linear, MoE

formats = pytest.mark.parametrize("format", FORMATS)
# DeepSeek-V4, whose tensors have names of their own and are of many kinds, has a test of its own.
models = pytest.mark.parametrize("name", [name for name in MODELS if name != "deepseek-v4"])
PROMPT = "once upon a time in a small village by the sea there lived alice and the rabbit"


def no_bar(title, total):
    return lambda: None


def tensors_of(folder):
    found = {}
    for file in sorted(folder.glob("*.safetensors")):
        found |= load_file(file)
    return found


def tensors_apart(folder):
    """The tensors of a folder, with the experts of gpt-oss one by one, gate and up apart."""
    found = {}
    for name, tensor in tensors_of(folder).items():
        module, _, leaf = name.rpartition(".")
        if not module.endswith(".experts"):
            found[name] = tensor
            continue
        kind = "bias" if leaf.endswith("_bias") else "weight"
        rows = tensor.mT if kind == "weight" else tensor
        for e, expert in enumerate(rows):
            if leaf.startswith("down_proj"):
                found[f"{module}.{e}.down_proj.{kind}"] = expert
            else:
                found[f"{module}.{e}.gate_proj.{kind}"] = expert[0::2]
                found[f"{module}.{e}.up_proj.{kind}"] = expert[1::2]
    return found


def names_in(folder):
    return sorted(path.name for path in folder.iterdir())


def shared_scale(weights, module):
    """amax / 2688 of all that engines multiply by as one."""
    together = [
        weights[f"{each}.weight"] for each in siblings_of(module) if f"{each}.weight" in weights
    ]
    return torch.stack([w.float().abs().amax() for w in together]).amax() / 2688


def as_bytes(x):
    return x.reshape(-1).view(torch.uint8)


def apart(x):
    """Sort columns gate, up, gate, up, ... to all of gate, then all of up."""
    return torch.cat([x[..., 0::2], x[..., 1::2]], dim=-1).detach()


def by_hand(model, stays=lambda path: False, activation="bf16"):
    """The model with its linear layers in NVFP4, made without a checkpoint, but those that stay."""
    weights = {
        f"{n}.weight": m.weight for n, m in model.named_modules() if isinstance(m, nn.Linear)
    }
    made = copy.deepcopy(model)
    for path, module in list(made.named_modules()):
        if stays(path):
            continue
        if path.endswith(".experts"):
            w13, w2, how = [], [], dict(activation_format=activation)
            gate_up, down_proj = module.gate_up_proj.detach(), module.down_proj.detach()
            if hasattr(module, "gate_up_proj_bias"):  # gpt-oss: x W, and gate and up alternate
                gate_up, down_proj = apart(gate_up).mT, down_proj.mT
                how |= dict(
                    w13_bias=apart(module.gate_up_proj_bias), w2_bias=module.down_proj_bias,
                    swiglu_limit=7.0, activation="swiglu_oai",
                )  # fmt: skip
            for both, down in zip(gate_up, down_proj, strict=True):
                p = both.float().abs().amax() / 2688
                w13.append(
                    nvfp4.concatenate(
                        [nvfp4.quantize_weight(half, global_scale=p) for half in both.chunk(2)]
                    )
                )
                w2.append(nvfp4.quantize_weight(down))
            packed = nvfp4.stack_experts(w13), nvfp4.stack_experts(w2)
            moe = MoE(*packed, **how)
            module.forward = lambda x, ids, weights, moe=moe: moe(x, weights, ids)
        elif isinstance(module, nn.Linear) and path != "lm_head" and not path.endswith("gate"):
            p = shared_scale(weights, path)
            packed = nvfp4.quantize_weight(module.weight.detach(), global_scale=p)
            made.set_submodule(path, Linear(packed, module.bias, activation=activation))
    return made
