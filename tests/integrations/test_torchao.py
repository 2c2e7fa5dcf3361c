"""torchao's quantize_ with nvfp4's configuration."""

import pytest
import torch
from cases import same_bits
from torch import nn

from nvfp4.layers import Linear

quantize_ = pytest.importorskip("torchao.quantization").quantize_


@pytest.mark.parametrize("activation", ["nvfp4", "bf16"])
def test_quantize_makes_our_layers(activation):
    from nvfp4.integrations.torchao import NvFp4Config

    model = nn.Sequential(nn.Linear(32, 48), nn.Linear(40, 16))
    want = Linear.from_float(model[0], activation=activation)
    quantize_(model, NvFp4Config(activation))
    assert type(model[1]) is nn.Linear
    x = torch.randn(3, 32)
    same_bits(model[0](x), want(x))
