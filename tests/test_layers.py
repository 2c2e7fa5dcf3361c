"""The modules: conversion, state_dict, devices, dtypes, pickling."""

import copy
import pickle

import pytest
import torch
from cases import same_bits
from torch import nn

import nvfp4
from nvfp4.layers import Linear


@pytest.fixture
def layer(device) -> Linear:
    return Linear.from_float(nn.Linear(96, 40, device=device))


def test_from_float(layer, device):
    x = torch.randn(2, 5, 96, device=device)
    want = torch.ops.nvfp4.linear(
        x, layer.weight, layer.weight_scales, layer.weight_global_scale, None, layer.bias
    )
    same_bits(layer(x), want)
    assert "in_features=96, out_features=40" in repr(layer)


def test_static_input_scale(device):
    float_layer = nn.Linear(96, 40, bias=False, device=device)
    x = torch.randn(5, 96, device=device)
    layer = Linear.from_float(float_layer, input_global_scale=nvfp4.global_scale(x))
    error = (layer(x) - float_layer(x)).norm() / float_layer(x).norm()
    assert error < 0.2 and "static" in repr(layer)


def test_state_dict_pickle_and_copy(layer, device):
    x = torch.randn(5, 96, device=device)
    want = layer(x)
    other = Linear.from_float(nn.Linear(96, 40, device=device))
    other.load_state_dict(layer.state_dict())
    for twin in (other, pickle.loads(pickle.dumps(layer)), copy.deepcopy(layer)):
        same_bits(twin(x), want)


def test_casting_the_module_does_not_touch_its_numbers(layer):
    before = {name: tensor.clone() for name, tensor in layer.state_dict().items()}
    layer.half().double().to(torch.bfloat16)
    for name, tensor in layer.state_dict().items():
        same_bits(tensor, before[name])
    assert layer.to("meta").weight.device.type == "meta"


def test_compile_fullgraph(layer, device):
    block = nn.Sequential(layer, nn.ReLU())
    compiled = torch.compile(block, fullgraph=True, dynamic=True)
    for m in (3, 17):
        x = torch.randn(m, 96, device=device)
        same_bits(compiled(x), block(x))


def test_k_not_a_multiple_of_16_is_refused(device):
    with pytest.raises(ValueError, match="multiple of 16"):
        Linear.from_float(nn.Linear(100, 40, device=device))
