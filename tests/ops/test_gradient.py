"""A gradient that an op does not have is an error at backward, eager and compiled."""

import pytest
import torch
from arguments import SCHEMAS, arguments
from torch import nn

import nvfp4
from nvfp4.layers import Linear, SwiGLUMLP

OPS = torch.ops.nvfp4


@pytest.mark.parametrize("name", sorted(SCHEMAS))
def test_a_backward_through_an_op_is_refused(name):
    args = arguments(name, 6, "cpu")
    floats = (torch.bfloat16, torch.float32)
    next(a for a in args if isinstance(a, torch.Tensor) and a.dtype in floats).requires_grad_()
    found = getattr(OPS, name)(*args)
    outputs = found if isinstance(found, tuple) else (found,)
    out = next(x for x in outputs if x.requires_grad)
    with pytest.raises(RuntimeError, match=f"nvfp4::{name} has no gradient"):
        out.float().sum().backward()


@pytest.mark.parametrize("make", [Linear.from_float, lambda f: SwiGLUMLP.from_float(f, f, f)])
def test_a_gradient_through_a_frozen_layer_does_not_vanish(make):
    lora, frozen = nn.Linear(64, 64, bias=False), make(nn.Linear(64, 64, bias=False))
    x = torch.randn(4, 64)
    loss = frozen(x + lora(x)).square().sum() + lora(x).sum()  # a second path hid the loss
    with pytest.raises(RuntimeError, match="has no gradient"):
        loss.backward()
    with pytest.raises(RuntimeError, match="has no gradient"):
        torch.func.grad(lambda x: frozen(x).square().sum())(x)


def test_a_compiled_model_runs_forward_and_refuses_backward(compiles):
    frozen = Linear.from_float(nn.Linear(64, 64, bias=False))
    embedding = nn.Linear(64, 64)  # its parameters need a gradient, as a loaded model's do
    model = torch.compile(nn.Sequential(embedding, frozen), fullgraph=True)
    x = torch.randn(4, 64)
    y = model(x)
    torch.testing.assert_close(y, frozen(embedding(x)))
    with pytest.raises(RuntimeError, match="nvfp4::linear has no gradient"):
        y.sum().backward()


def test_nothing_is_recorded_where_no_gradient_is_asked_for():
    w = nvfp4.quantize(torch.randn(24, 32))
    x = torch.randn(3, 32, requires_grad=True)
    with torch.no_grad():
        assert not OPS.linear(x, w.data, w.scales, w.global_scale).requires_grad
    with torch.inference_mode():
        assert not OPS.linear(x, w.data, w.scales, w.global_scale).requires_grad
    assert not OPS.linear(x.detach(), w.data, w.scales, w.global_scale).requires_grad
