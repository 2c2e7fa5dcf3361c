"""Dequantization: packed data and scales back to floats."""

import triton
import triton.language as tl
from torch import Tensor

from nvfp4.backends.target import target_of
from nvfp4.backends.triton.device.floats import (
    BLOCK,
    E2M1_F16_SCALE,
    e2m1_to_f16,
    e4m3_to_f16,
    from_f32,
)
from nvfp4.backends.triton.device.tile_config import choose_tile
from nvfp4.backends.triton.device.tiles import scale_offsets
from nvfp4.backends.triton.runtime.launch import Launch, cdiv
from nvfp4.backends.triton.runtime.program import run
from nvfp4.calls import Dequantize, takes
from nvfp4.spec.format import DATA_DTYPE, SWIZZLED


@triton.jit(do_not_specialize=["M", "p_stride"])
def _dequantize_kernel(
    data, scales, global_scale, out, M, K, data_stride, p_stride, scale_columns,
    SWIZZLED: tl.constexpr, R: tl.constexpr, C: tl.constexpr, SM: tl.constexpr,
):  # fmt: skip
    rows = tl.program_id(0) * R + tl.arange(0, R)
    column = tl.program_id(1) * C
    in_rows = (rows < M)[:, None]
    rows64 = rows.to(tl.int64)[:, None]

    byte = column // 2 + tl.arange(0, C // 2)
    inside = in_rows & (byte < K // 2)[None, :]
    packed = tl.load(data + rows64 * data_stride + byte[None, :], mask=inside, other=0)
    block = column // BLOCK + tl.arange(0, C // BLOCK)
    offsets = scale_offsets(rows[:, None], block[None, :], scale_columns, SWIZZLED)
    sf = tl.load(scales + offsets, mask=in_rows & (block < K // BLOCK)[None, :], other=0)
    p = tl.load(global_scale + rows * p_stride, mask=rows < M, other=1.0)

    codes = tl.join(packed & 0xF, packed >> 4).reshape(R, C // BLOCK, BLOCK)
    values = e2m1_to_f16(codes).to(tl.float32) * E2M1_F16_SCALE
    # values * sf is exact; only the product with p is rounded.
    values = values * e4m3_to_f16(sf, SM).to(tl.float32)[:, :, None] * p[:, None, None]
    columns = column + tl.arange(0, C)
    inside = in_rows & (columns < K)[None, :]
    values = from_f32(values.reshape(R, C), out.dtype.element_ty)
    tl.store(out + rows64 * K + columns[None, :], values, mask=inside)


def plan(call: Dequantize, out: Tensor, sm: int) -> Launch:
    """The launch for a prepared call on architecture sm_<sm>."""
    data, scales, p = call.data, call.scales.view(DATA_DTYPE), call.global_scale
    m, k = out.shape
    tile = choose_tile(k, elements=4096, widest=512, num_warps=4)
    strides = data.stride(0), int(p.numel() > 1), scales.shape[1]
    swizzled = call.scale_layout == SWIZZLED
    return Launch(
        _dequantize_kernel,
        (cdiv(m, tile.rows), cdiv(k, tile.columns)),
        (data, scales, p, out, m, k, *strides),
        {"SWIZZLED": swizzled, "R": tile.rows, "C": tile.columns, "SM": sm},
        num_warps=tile.num_warps,
    )


@takes(Dequantize.prepared)
def dequantize(call: Dequantize, out: Tensor) -> None:
    run(plan(call, out, target_of(out.device).sm))
