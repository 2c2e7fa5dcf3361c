"""ModelOpt's simulation of NVFP4 on a CPU: the arithmetic of its two Triton kernels, in torch.

ModelOpt 0.47 simulates NVFP4 by kernels that need a GPU; its export does not. Importing this module
puts the functions below in their place.
"""

import modelopt.torch.kernels.quantization.gemm as kernels
import torch
from modelopt.torch.quantization import tensor_quant
from torch import Tensor

E2M1_MAX, E4M3_MAX = 6.0, 448.0


def round_to_e2m1(x: Tensor) -> Tensor:
    """Round to the nearest value of E2M1, ties to an even code."""
    a = x.abs().clamp(max=E2M1_MAX)
    step = torch.where(a < 2, 0.5, torch.where(a < 4, 1.0, 2.0))
    return ((a / step).round() * step).copysign(x)


def simulate(blocks: Tensor, scale: Tensor) -> Tensor:
    """Round blocks [..., 16] to E2M1 times their scales [..., 1]; a scale of 0 gives zeros."""
    usable = (scale != 0) & scale.isfinite()
    divisor = torch.where(usable, scale, 1.0)
    return torch.where(scale == 0, 0.0, round_to_e2m1(blocks / divisor) * divisor)


def simulate_activations(
    inputs: Tensor,
    block_size: int,
    amax: Tensor,
    num_bits: int,
    exponent_bits: int,
    scale_num_bits: int,
    scale_exponent_bits: int,
) -> Tensor:
    """Quantize each block by its own scale, under a global scale of amax / 2688."""
    if (num_bits, exponent_bits, scale_num_bits, scale_exponent_bits) != (4, 2, 8, 4):
        raise ValueError("simulate_activations needs E2M1 with scales in E4M3")
    p = amax.float().amax() / (E2M1_MAX * E4M3_MAX)
    blocks = inputs.float().unflatten(-1, (-1, block_size))
    scale = blocks.abs().amax(-1, keepdim=True) / (E2M1_MAX * p)
    scale = scale.clamp(max=E4M3_MAX).to(torch.float8_e4m3fn).float() * p
    return simulate(blocks, scale).flatten(-2).to(inputs.dtype)


def simulate_weights(
    x: Tensor,
    amax: Tensor,
    global_amax: Tensor | None = None,
    quantize_block_scales: bool = True,
    fp8_max: float = E4M3_MAX,
    out_dtype: torch.dtype | None = None,
) -> Tensor:
    """Quantize each block by the scale that its calibrated amax gives."""
    scale = amax.float() / E2M1_MAX
    if quantize_block_scales:
        largest = (amax if global_amax is None else global_amax).float().amax()
        scale = tensor_quant.scaled_e4m3_impl(scale, largest * (E4M3_MAX / fp8_max) / E2M1_MAX)
    blocks = x.contiguous().float().view(amax.numel(), -1)
    return simulate(blocks, scale.reshape(-1, 1)).view(x.shape).to(out_dtype or x.dtype)


tensor_quant.dynamic_block_quantize_op = simulate_activations
kernels.IS_AVAILABLE = True
kernels.static_blockwise_fp4_fake_quant = simulate_weights
