"""The constants of NVFP4, each written once.

An NVFP4 tensor has three parts: 4-bit E2M1 codes, one E4M3 scale for each block of 16 codes along
K, and one float32 global scale p, which multiplies at decoding:

    value = e2m1(code) * e4m3(scale) * p
"""

import torch

BLOCK = 16
"""Consecutive elements along K that share one scale."""

DATA_DTYPE = torch.uint8
"""A byte holds two E2M1 codes, even k in the low nibble, as in torch.float4_e2m1fn_x2."""

SCALE_DTYPE = torch.float8_e4m3fn
FLOAT_DTYPES = (torch.bfloat16, torch.float16, torch.float32)
"""The dtypes of inputs that can be quantized, and of what a GEMM or dequantize can return."""

E2M1_VALUES = (0.0, 0.5, 1.0, 1.5, 2.0, 3.0, 4.0, 6.0)
"""The values of codes 0..7; bit 3 of a code is the sign."""

E2M1_MAX = 6.0
E4M3_MAX = 448.0
GLOBAL_SCALE_DIVISOR = E2M1_MAX * E4M3_MAX
"""p = amax / 2688 puts the largest element of a tensor at the top of both formats."""

NAN_SCALE = 0x7F
"""The scale byte of a block that held a NaN."""

NAN_BLOCK_CODE = 0x7
"""Every code of a block that held a NaN: Blackwell's conversion to E2M1 gives it for a NaN."""

FLOAT32_MAX = torch.finfo(torch.float32).max
FLOAT32_MIN_NORMAL = torch.finfo(torch.float32).tiny

ONE_SIXTH = 0.16666667163372039794921875
"""float32(1/6), spelled out so that no implementation rounds it a second time."""

LINEAR = "linear"
SWIZZLED = "swizzled"
SCALE_LAYOUTS = (SWIZZLED, LINEAR)

W4A4, W4A16 = "nvfp4", "bf16"
"""What activations are multiplied as: 4 bits, or 16."""
