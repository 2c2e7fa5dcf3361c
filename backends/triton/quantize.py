"""Quantization with a known global scale."""

import torch
import triton
import triton.language as tl
from torch import Tensor

from nvfp4.backends.contract import target_of
from nvfp4.backends.triton.architecture import is_blackwell
from nvfp4.backends.triton.launch import Launch, cdiv
from nvfp4.backends.triton.quantize_config import Tile, choose_tile
from nvfp4.backends.triton.tiles import store_quantized, to_f32
from nvfp4.spec.format import BLOCK, DATA_DTYPE, SCALE_DTYPE, SWIZZLED
from nvfp4.spec.swizzle import scales_shape


@triton.jit
def _quantize_kernel(
    x, global_scale, data, scales, M, K, x_stride, p_stride, scale_rows, scale_columns,
    SWIZZLED: tl.constexpr, R: tl.constexpr, C: tl.constexpr, NATIVE: tl.constexpr,
):  # fmt: skip
    rows = tl.program_id(0) * R + tl.arange(0, R)
    column = tl.program_id(1) * C
    columns = column + tl.arange(0, C)
    inside = (rows < M)[:, None] & (columns < K)[None, :]
    offsets = rows.to(tl.int64)[:, None] * x_stride + columns[None, :]
    values = to_f32(tl.load(x + offsets, mask=inside, other=0.0))
    p = tl.load(global_scale + rows * p_stride, mask=rows < M, other=1.0)
    store_quantized(
        values,
        p,
        data,
        scales,
        rows,
        column,
        M,
        K,
        scale_rows,
        scale_columns,
        SWIZZLED,
        R,
        C,
        NATIVE,
    )


def empty_outputs(
    rows: int, k: int, scale_layout: str, device: torch.device
) -> tuple[Tensor, Tensor]:
    """data uint8 [rows, k/2] and the scales' buffer, both as bytes."""
    data = torch.empty(rows, k // 2, dtype=DATA_DTYPE, device=device)
    return data, torch.empty(scales_shape((rows, k), scale_layout), dtype=DATA_DTYPE, device=device)


def plan(
    x: Tensor, global_scale: Tensor, scale_layout: str, sm: int, tile: Tile | None = None
) -> tuple[Tensor, Tensor, Launch]:
    """x [M, K], global_scale float32 [1] or [M]; sm: the architecture to plan for."""
    m, k = x.shape
    data, scales = empty_outputs(m, k, scale_layout, x.device)
    scale_rows, scale_columns = scales.shape
    tile = tile or choose_tile(k, elements=4096, widest=1024, num_warps=2)
    launch = Launch(
        _quantize_kernel,
        (cdiv(scale_rows, tile.rows), cdiv(scale_columns * BLOCK, tile.columns)),
        (
            x, global_scale, data, scales, m, k, x.stride(0), int(global_scale.numel() > 1),
            scale_rows, scale_columns,
        ),
        {
            "SWIZZLED": scale_layout == SWIZZLED,
            "R": tile.rows,
            "C": tile.columns,
            "NATIVE": is_blackwell(sm),
        },
        num_warps=tile.num_warps,
    )  # fmt: skip
    return data, scales, launch


def quantize(x: Tensor, global_scale: Tensor, scale_layout: str) -> tuple[Tensor, Tensor]:
    data, scales, launch = plan(x, global_scale, scale_layout, target_of(x.device).sm)
    launch.run()
    return data, scales.view(SCALE_DTYPE)
