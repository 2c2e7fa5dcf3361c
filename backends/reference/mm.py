"""The GEMM in float64, which makes it the correctly rounded one.

Every e2m1 * sf is a multiple of 2^-10 of magnitude at most 2688. So a product of two is a multiple
of 2^-20 below 2^23, and float64's 53 bits hold any sum below 2^33 exactly. The result does not
depend on the order of summation, nor a row's on its neighbours. The epilogue's fused multiply-add
of the float32 sum is computed in float64 and rounded to float32.
"""

import torch
from torch import Tensor

from nvfp4.calls import Mm, takes
from nvfp4.spec.quantize import CHUNK, decode
from nvfp4.spec.swizzle import unswizzle_scales


@takes(Mm.prepared)
def mm(call: Mm, out: Tensor) -> None:
    (m, n), k = out.shape, 2 * call.a.shape[1]
    alpha = call.alpha if call.row_scale is None else call.row_scale.view(-1, 1) * call.alpha
    a_values = decode(call.a, unswizzle_scales(call.a_scales, m, k))
    multiply(a_values, call.b, unswizzle_scales(call.b_scales, n, k), alpha, call.bias, out)


def multiply(
    a_values: Tensor, b: Tensor, b_linear: Tensor, alpha: Tensor, bias: Tensor | None, out: Tensor
) -> None:
    """Compute out [M, N] = (A B^T) * alpha [1 or M, S] + bias [N].

    A is decoded, [M, K]; B's scales are linear.
    """
    n, k = b.shape[0], a_values.shape[1]
    columns = torch.arange(n, device=b.device) // (n // alpha.shape[1])
    a_values = a_values.double()
    step = max(1, CHUNK // k)
    for start in range(0, n, step):
        part = slice(start, start + step)
        acc = (a_values @ decode(b[part], b_linear[part]).double().T).float().double()
        acc *= alpha[:, columns[part]]
        if bias is not None:
            acc += bias[part]
        out[:, part] = acc.float()
