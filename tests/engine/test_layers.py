"""Each layer of a model that vLLM loaded gives the bits of nvfp4.layers on the same checkpoint:
fused or not, whole or a rank's part.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any
from unittest import mock

import pytest
import torch
from engine.models import (
    ARCHITECTURES,
    DENSE,
    LOADED,
    MIXTURES,
    make,
    with_hf_quant_config_alone,
    with_pre_quant_scales,
)
from engine.ranks import Rank, loaded, on_ranks
from torch import Tensor

from nvfp4.checkpoints.checkpoint import Checkpoint
from nvfp4.layers import Linear, MoE
from nvfp4.spec.format import LINEAR
from nvfp4.spec.glu import RELU2, SILU
from nvfp4.tensors import QuantizedTensor, concatenate, stack_experts

FUSED = {"qkv_proj": ("q_proj", "k_proj", "v_proj"), "gate_up_proj": ("gate_proj", "up_proj")}
TOKENS = 5
TOP_K = 2


@pytest.fixture(scope="session")
def folders(tmp_path_factory) -> dict[str, list[Path]]:
    """Both checkpoints of each architecture, and two of the dense one in other ways."""
    root = tmp_path_factory.mktemp("models")
    made = {name: make(name, root / name) for name in (*ARCHITECTURES, *LOADED)}
    found = {name: [each.modelopt, each.compressed_tensors] for name, each in made.items()}
    dense = made[DENSE].modelopt
    found[DENSE].append(with_pre_quant_scales(dense, root / "awq"))
    found[DENSE].append(with_hf_quant_config_alone(dense, root / "hf_quant_config"))
    return found


def test_a_model_on_one_rank(folders):
    on_ranks(1, compare_all, sum(folders.values(), []))


def test_a_model_on_two_ranks(folders):
    on_ranks(2, compare_all, sum(folders.values(), []))


def test_experts_on_two_ranks(folders):
    on_ranks(2, compare_all, sum((folders[name] for name in (*MIXTURES, *LOADED)), []), True)


def test_the_kernel_of_vllms_own_method(tmp_path):
    """--quantization modelopt_fp4, with parts that share their global scales."""
    on_ranks(1, compare_kernel, make(DENSE, tmp_path, separate_scales=False).modelopt)


def compare_kernel(rank: Rank, folder: Path) -> None:
    from vllm.model_executor.layers.linear import LinearBase

    checkpoint, compared = Checkpoint(folder, activation="nvfp4"), 0
    with loaded(rank, folder, quantization="modelopt_fp4") as model:
        for name, layer in model.named_modules():
            if not isinstance(layer, LinearBase):
                continue
            parent, _, leaf = name.rpartition(".")
            modules = [f"{parent}.{part}" for part in FUSED.get(leaf, (leaf,))]
            want = checkpoint.linear(*modules)
            x = _tokens(2 * want.weight.shape[1])
            assert torch.equal(layer.quant_method.apply(layer, x, layer.bias), want(x)), modules
            compared += len(modules)
    assert compared == len(checkpoint.modules)


def compare_all(rank: Rank, folders: list[Path], expert_parallel: bool = False) -> None:
    """In each rank's process: every quantized layer of the checkpoints."""
    for folder in folders:
        _compare(rank, folder, expert_parallel)


def _compare(rank: Rank, folder: Path, expert_parallel: bool) -> None:
    from vllm.model_executor.layers.fused_moe import RoutedExperts

    from nvfp4.integrations.vllm.experts import NvFp4ExpertsMethod
    from nvfp4.integrations.vllm.linear import NvFp4LinearMethod

    checkpoint, compared = Checkpoint(folder), set()
    options = {"enable_expert_parallel": expert_parallel}
    with _experts_without_a_gate_on_a_cpu(), loaded(rank, folder, **options) as model:
        for name, layer in model.named_modules():
            method = getattr(layer, "quant_method", None)
            if isinstance(method, NvFp4LinearMethod):
                modules = [_in_checkpoint(checkpoint, module) for module in method.modules]
                _compare_linear(rank, checkpoint, layer, modules)
                compared |= set(modules)
            if isinstance(layer, RoutedExperts):
                assert isinstance(method, NvFp4ExpertsMethod)
                experts = _in_checkpoint(checkpoint, name.removesuffix(".routed_experts"))
                _compare_experts(rank, checkpoint, layer, experts, expert_parallel)
                compared |= {each for each in checkpoint.modules if each.startswith(f"{experts}.")}
    assert compared == set(checkpoint.modules)


def _in_checkpoint(checkpoint: Checkpoint, module: str) -> str:
    """The checkpoint's name of a module: Nemotron-H's begin with another word in vLLM."""
    if checkpoint.modules[0].startswith("backbone."):
        return module.replace("model.", "backbone.", 1)
    return module


@contextmanager
def _experts_without_a_gate_on_a_cpu() -> Iterator[None]:
    """Pass over vLLM's check that experts without a gate are on a GPU: its own CPU kernels lack
    them, and none of those runs here.
    """
    from vllm.model_executor.layers.fused_moe import config

    platform = config.current_platform
    with mock.patch.object(config, "current_platform", mock.Mock(wraps=platform)) as pretended:
        pretended.is_xpu = lambda: True
        yield


def _compare_linear(rank: Rank, checkpoint: Checkpoint, layer: Any, modules: list[str]) -> None:
    from vllm.model_executor.layers.linear import RowParallelLinear

    k = 2 * checkpoint.weight(modules[0]).data.shape[1]
    x = _tokens(k)
    if isinstance(layer, RowParallelLinear):
        x = x.chunk(rank.count, dim=1)[rank.index]
        (module,) = modules
        part = _part(rank, checkpoint.weight(module), axis=1)
        factor = checkpoint.pre_quant_scale(module)
        factor = None if factor is None else factor.chunk(rank.count)[rank.index]
        input_scale = checkpoint.input_global_scale(module)
        activation = checkpoint.activation_of(module)
        want = Linear(part, None, input_scale, factor, activation=activation)(x)
    else:
        sizes = [checkpoint.weight(module).rows for module in modules]
        whole = checkpoint.linear(*modules)(x).split(sizes, dim=1)
        want = torch.cat([y.chunk(rank.count, dim=1)[rank.index] for y in whole], dim=1)
        p = layer.weight_global_scale
        assert len(modules) == 1 or p.max() > 1.5 * p.min()  # one scale for all would be wrong
    got = layer.quant_method.apply(layer, x, layer.bias)
    assert torch.equal(got, want), (modules, (got - want).abs().max())


def _compare_experts(
    rank: Rank, checkpoint: Checkpoint, layer: Any, experts: str, expert_parallel: bool
) -> None:
    gated = checkpoint.is_quantized(f"{experts}.0.w1") or checkpoint.is_quantized(
        f"{experts}.0.gate_proj"
    )
    whole = checkpoint.moe(experts, activation=SILU if gated else RELU2)
    if expert_parallel:
        want = whole.local(rank.index, rank.count)
    else:
        want = _experts_part(rank, checkpoint, experts, whole)
    if gated:
        gate, up = whole.w13_global_scale.unbind(1)
        assert (up > 1.5 * gate).all()
    x = _tokens(2 * whole.w13.shape[2])
    weights, ids = torch.rand(TOKENS, whole.experts).topk(TOP_K)
    got = layer.quant_method.apply(layer, x, weights, ids.int(), None, None)
    assert torch.equal(got, want(x, weights, ids)), experts


def _experts_part(rank: Rank, checkpoint: Checkpoint, experts: str, whole: MoE) -> MoE:
    """A rank's columns of every expert's intermediate."""
    names: tuple[str, ...] = ("gate_proj", "up_proj", "down_proj")
    if whole.activation == RELU2:
        names = ("up_proj", "down_proj")
    elif not checkpoint.is_quantized(f"{experts}.0.gate_proj"):
        names = ("w1", "w3", "w2")
    w13, w2 = [], []
    for expert in range(whole.experts):
        *first, down = (checkpoint.weight(f"{experts}.{expert}.{name}") for name in names)
        w13.append(concatenate([_part(rank, each, axis=0) for each in first]))
        w2.append(_part(rank, down, axis=1))
    scales = whole.x_global_scale, whole.h_global_scale
    packed = stack_experts(w13), stack_experts(w2)
    forms = dict(activation_format=whole.activation_format, activation=whole.activation)
    return MoE(*packed, *scales, **forms)


def _part(rank: Rank, weight: QuantizedTensor, axis: int) -> QuantizedTensor:
    data, scales = (
        each.chunk(rank.count, axis)[rank.index] for each in (weight.data, weight.scales)
    )
    return QuantizedTensor(data, scales, weight.global_scale, LINEAR)


def _tokens(k: int) -> Tensor:
    return 3 * torch.randn(TOKENS, k, dtype=torch.bfloat16)
