"""A linear layer with 16-bit activations (W4A16): they are laid out for the GEMM, then multiplied.

The GEMM multiplies float16. The first launch divides each row by a power of two that brings its
largest element near float16's. Float16 then holds the row's bfloat16 values, except for elements
2^31 times smaller than the largest.
"""

from functools import partial

import torch
import triton
import triton.language as tl
from torch import Tensor

from nvfp4.backends.target import target_of
from nvfp4.backends.triton.device.floats import E2M1_F16_SCALE, from_f32, to_f32
from nvfp4.backends.triton.device.pdl import wait_for_previous_kernel
from nvfp4.backends.triton.device.tile_config import Tile, choose_rounding_tile
from nvfp4.backends.triton.device.tiles import load_blocks, row_power_of_two
from nvfp4.backends.triton.gemm.config import HopperConfig, MmConfig
from nvfp4.backends.triton.gemm.decode import decoded_width, store_for_gemm
from nvfp4.backends.triton.gemm.operands import Factors, Operand
from nvfp4.backends.triton.gemm.split_k import zero_tile_counters
from nvfp4.backends.triton.mm import plan_decoded
from nvfp4.backends.triton.runtime.architecture import FP8, is_blackwell, supports_pdl
from nvfp4.backends.triton.runtime.launch import Launch, cdiv
from nvfp4.backends.triton.runtime.program import run
from nvfp4.calls import Linear, takes
from nvfp4.spec.format import DATA_DTYPE


@triton.jit
def over_power_of_two(x, p):
    """Divide the rows of x float32 [R, C/16, 16] by their powers of two p [R], to float16."""
    return (x * (1.0 / p)[:, None, None]).to(tl.float16)


@triton.jit
def gemm_row_scale(p):
    """The row_scale of the GEMM for a row over p: its result includes E2M1_F16_SCALE."""
    return p * (1.0 / E2M1_F16_SCALE)


@triton.jit(do_not_specialize=["tiles", "M"])
def _lay_out_rows_kernel(
    x, out, row_scale, tile_counters, tiles, M, K, x_stride, out_stride,
    WHOLE_ROWS: tl.constexpr, R: tl.constexpr, C: tl.constexpr, SM: tl.constexpr,
):  # fmt: skip
    """Store x over its row's power of two to out float16 [M, decoded_width(K)], in decode's order.

    row_scale [M] gets that power over E2M1_F16_SCALE, since the GEMM's result includes this factor.
    """
    wait_for_previous_kernel(SM)
    zero_tile_counters(tile_counters, tiles)
    rows = tl.program_id(0) * R + tl.arange(0, R)
    values = load_blocks(x, rows, rows < M, tl.program_id(1) * C, K, x_stride, R, C)
    p = row_power_of_two(values)
    if not WHOLE_ROWS:
        for first in range(0, K, C):
            part = load_blocks(x, rows, rows < M, first, K, x_stride, R, C)
            p = tl.maximum(p, row_power_of_two(part))
    if x.dtype.element_ty == tl.float32:
        values = to_f32(from_f32(values, tl.bfloat16))
    store_for_gemm(over_power_of_two(values, p), out, rows, M, out_stride, R, C)
    # Every program of a row stores its scale: all have found the same one.
    tl.store(row_scale + rows, gemm_row_scale(p), mask=rows < M)


def plan(
    call: Linear, out: Tensor, sm: int, config: MmConfig | HopperConfig | None = None
) -> tuple[Launch, ...]:
    """The launches for a prepared call on architecture sm_<sm>; config: default the one chosen."""
    x = call.x
    m, k = x.shape
    if is_blackwell(sm):  # the block-scaled instruction takes NVFP4 for both operands only
        sm = FP8
    row_scale = torch.empty(m, dtype=torch.float32, device=x.device)
    laying_out = partial(_plan_rows, x, row_scale, sm)
    weight = Operand(call.weight, call.weight_scales.view(DATA_DTYPE))
    factors = Factors(call.weight_global_scale[None], row_scale, call.bias)
    return plan_decoded(laying_out, weight, factors, out, k, sm, config)


MAX_ROW_COLUMNS = 8192
"""The longest row that one program holds. The programs of a longer row each read all of it."""


def _plan_rows(
    x: Tensor, row_scale: Tensor, sm: int, tile_counters: Tensor | None
) -> tuple[Tensor, Launch]:
    (m, k), width = x.shape, decoded_width(x.shape[1])
    out = torch.empty(m, width, dtype=torch.float16, device=x.device)
    tile: Tile = choose_rounding_tile(m, min(width, MAX_ROW_COLUMNS))
    tiles = 0 if tile_counters is None else tile_counters.numel()
    launch = Launch(
        _lay_out_rows_kernel,
        (cdiv(m, tile.rows), cdiv(width, tile.columns)),
        (
            x, out, row_scale, tile_counters, tiles, m, k, x.stride(0), width,
        ),
        {
            "WHOLE_ROWS": width <= tile.columns,
            "R": tile.rows,
            "C": tile.columns,
            "SM": sm,
        },
        num_warps=tile.num_warps,
        launch_pdl=supports_pdl(sm),
    )  # fmt: skip
    return out, launch


@takes(Linear.prepared)
def weight_only_linear(call: Linear, out: Tensor) -> None:
    run(*plan(call, out, target_of(out.device).sm))
