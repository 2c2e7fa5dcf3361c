"""The weighted sum of each token's expert rows."""

import triton
import triton.language as tl
from torch import Tensor

from nvfp4.backends.triton.device.floats import from_f32, to_f32
from nvfp4.backends.triton.runtime.launch import Launch, cdiv, next_power_of_2
from nvfp4.backends.triton.runtime.program import run
from nvfp4.calls import MoeCombine, takes


@triton.jit(do_not_specialize=["R"])
def _combine_kernel(y, weights, positions, out, R, N, y_stride, top_k, C: tl.constexpr):
    token = tl.program_id(0)
    columns = tl.program_id(1) * C + tl.arange(0, C)
    acc = tl.zeros((C,), tl.float32)
    for j in range(top_k):
        row = tl.load(positions + token * top_k + j)
        # A choice without a row adds nothing, whatever its weight. A position outside y makes no
        # address.
        if (row >= 0) & (row < R):
            weight = to_f32(tl.load(weights + token * top_k + j))
            values = tl.load(y + row.to(tl.int64) * y_stride + columns, mask=columns < N, other=0.0)
            acc += weight * to_f32(values)
    at = out + token.to(tl.int64) * N + columns
    tl.store(at, from_f32(acc, out.dtype.element_ty), mask=columns < N)


def plan(call: MoeCombine, out: Tensor) -> Launch:
    """The launch for a prepared call."""
    y, (m, n), top_k = call.y, out.shape, call.positions.shape[1]
    columns = min(next_power_of_2(n), 1024)
    args = (y, call.topk_weights, call.positions, out, y.shape[0], n, y.stride(0), top_k)
    return Launch(_combine_kernel, (m, cdiv(n, columns)), args, {"C": columns})


@takes(MoeCombine.prepared)
def moe_combine(call: MoeCombine, out: Tensor) -> None:
    run(plan(call, out))
