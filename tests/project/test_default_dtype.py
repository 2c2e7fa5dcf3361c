"""torch's default dtype, which engines set to bfloat16 while they load a model."""

import ast
from contextlib import contextmanager
from pathlib import Path

import pytest
import torch
from cases import same_bits
from torch import Tensor

import nvfp4
from nvfp4.backends.triton import warmup
from nvfp4.backends.workload import Workload
from nvfp4.spec.format import W4A4, W4A16

ROOT = Path(__file__).parents[2]
FOLDERS = (
    "ahead", "backends", "calls", "checkpoints", "dispatch", "integrations", "layers", "ops",
    "quantization", "spec", "tensors", "tuning",
)  # fmt: skip
FLOATS_BY_DEFAULT = ("empty", "zeros", "ones", "rand", "randn", "linspace", "tensor")
"""Functions of torch whose result has the default dtype unless the call names one."""


@contextmanager
def bfloat16_by_default():
    torch.set_default_dtype(torch.bfloat16)
    try:
        yield
    finally:
        torch.set_default_dtype(torch.float32)


def _without_dtype(path: Path) -> list[int]:
    return [
        node.lineno
        for node in ast.walk(ast.parse(path.read_text()))
        if isinstance(node, ast.Call)
        and ast.unparse(node.func) in {f"torch.{name}" for name in FLOATS_BY_DEFAULT}
        and not any(keyword.arg == "dtype" for keyword in node.keywords)
    ]


@pytest.mark.parametrize("folder", FOLDERS)
def test_a_tensor_had_the_default_dtype(folder):
    paths = list((ROOT / folder).rglob("*.py"))
    assert paths
    found = {str(path): lines for path in paths if (lines := _without_dtype(path))}
    assert not found


def _tensors():
    """The dtypes of all tensors that the warmed-up kernels take."""
    workloads = [Workload(6144, 4096, 512, activation_format=form) for form in (W4A4, W4A16)]
    workloads.append(Workload(512, 256, 512, experts=8, glu=True))
    warmup._launches_of.cache_clear()
    for sm in (80, 90):
        for name, launch in warmup.launches_for(workloads, sm):
            yield name, [x.dtype for x in launch.args if isinstance(x, Tensor)]
    warmup._launches_of.cache_clear()


def test_partial_sums_were_bfloat16_while_an_engine_loaded():
    before = list(_tensors())
    with bfloat16_by_default():
        assert list(_tensors()) == before


def test_ops_give_the_same_bits():
    gen = torch.Generator().manual_seed(0)
    x, w = (torch.randn(rows, 64, generator=gen).bfloat16() for rows in (5, 128))
    q = nvfp4.quantize_weight(w)
    packed = q.data, q.scales, q.global_scale
    experts = nvfp4.stack_experts([nvfp4.quantize_weight(w)] * 2)
    down = nvfp4.stack_experts([nvfp4.quantize_weight(w[:64])] * 2)
    weights, ids = torch.rand(5, 2, generator=gen), torch.tensor([[0, 1]] * 5)

    def outputs():
        yield nvfp4.linear(x, *packed)
        yield nvfp4.linear(x, *packed, activation="bf16")
        yield nvfp4.moe(x, weights, ids, experts, down)
        yield nvfp4.rmsnorm_quantize(x, w[0], 1e-6)[0].global_scale
        yield nvfp4.dequantize(nvfp4.quantize_dynamic(x), torch.float32)

    want = list(outputs())
    with bfloat16_by_default():
        got = list(outputs())
    for mine, theirs in zip(got, want, strict=True):
        same_bits(mine, theirs)
