"""SwiGLU's elementwise half and the quantization of its result, in one pass."""

import triton
import triton.language as tl
from torch import Tensor

from nvfp4.backends.contract import target_of
from nvfp4.backends.triton.architecture import is_blackwell
from nvfp4.backends.triton.launch import Launch, cdiv
from nvfp4.backends.triton.quantize_config import Tile, choose_tile
from nvfp4.backends.triton.tiles import silu_mul, store_quantized, to_f32
from nvfp4.spec.format import BLOCK, DATA_DTYPE, SWIZZLED


@triton.jit
def _silu_mul_quantize_kernel(
    gate_up, global_scale, limit, data, scales, M, K, stride, p_stride, scale_rows, scale_columns,
    LIMITED: tl.constexpr,
    SWIZZLED: tl.constexpr, R: tl.constexpr, C: tl.constexpr, NATIVE: tl.constexpr,
):  # fmt: skip
    rows = tl.program_id(0) * R + tl.arange(0, R)
    column = tl.program_id(1) * C
    columns = column + tl.arange(0, C)
    inside = (rows < M)[:, None] & (columns < K)[None, :]
    offsets = rows.to(tl.int64)[:, None] * stride + columns[None, :]
    gate = to_f32(tl.load(gate_up + offsets, mask=inside, other=0.0))
    up = to_f32(tl.load(gate_up + K + offsets, mask=inside, other=0.0))
    if LIMITED:
        # Comparisons, not minimum and maximum: those would turn a NaN into the limit.
        gate = tl.where(gate > limit, limit, gate)
        up = tl.where(up > limit, limit, tl.where(up < -limit, -limit, up))
    p = tl.load(global_scale + rows * p_stride, mask=rows < M, other=1.0)
    store_quantized(
        silu_mul(gate, up), p, data, scales, rows, column, M, K, scale_rows, scale_columns,
        SWIZZLED, R, C, NATIVE,
    )  # fmt: skip


def plan(
    gate_up: Tensor,
    global_scale: Tensor,
    limit: float | None,
    scale_layout: str,
    data: Tensor,
    scales: Tensor,
    sm: int,
    tile: Tile | None = None,
) -> Launch:
    """gate_up [M, 2I], global_scale float32 [1] or [M], scales as bytes; sm: the architecture."""
    (m, both), (scale_rows, scale_columns) = gate_up.shape, scales.shape
    tile = tile or choose_tile(both // 2, elements=1024, widest=1024, num_warps=2)
    return Launch(
        _silu_mul_quantize_kernel,
        (cdiv(scale_rows, tile.rows), cdiv(scale_columns * BLOCK, tile.columns)),
        (
            gate_up, global_scale, limit or 0.0, data, scales, m, both // 2, gate_up.stride(0),
            int(global_scale.numel() > 1), scale_rows, scale_columns,
        ),
        {
            "LIMITED": limit is not None,
            "SWIZZLED": scale_layout == SWIZZLED,
            "R": tile.rows,
            "C": tile.columns,
            "NATIVE": is_blackwell(sm),
        },
        num_warps=tile.num_warps,
    )  # fmt: skip


def silu_mul_quantize(
    gate_up: Tensor,
    global_scale: Tensor,
    limit: float | None,
    scale_layout: str,
    data: Tensor,
    scales: Tensor,
) -> None:
    scales, sm = scales.view(DATA_DTYPE), target_of(gate_up.device).sm
    plan(gate_up, global_scale, limit, scale_layout, data, scales, sm).run()
