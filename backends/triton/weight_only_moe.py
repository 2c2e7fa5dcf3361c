"""A mixture of experts with 16-bit activations (W4A16), as launches in a row:

    route -> lay out the tokens -> grouped GEMM (w13) -> activate and lay out -> grouped GEMM (w2)
    -> combine

The GEMM multiplies float16, and rows are laid out for it as in weight_only_linear.py: over a power
of two of their own. Between the GEMMs the activation's result goes from registers to that form.
"""

from functools import partial

import torch
import triton
import triton.language as tl
from torch import Tensor

from nvfp4.backends.target import target_of
from nvfp4.backends.triton import moe_combine, route
from nvfp4.backends.triton.device.floats import from_f32, to_f32
from nvfp4.backends.triton.device.groups import experts_vector, store_tiles
from nvfp4.backends.triton.device.tile_config import choose_rounding_tile
from nvfp4.backends.triton.device.tiles import load_blocks, row_power_of_two
from nvfp4.backends.triton.gemm.config import HopperConfig, MmConfig
from nvfp4.backends.triton.gemm.decode import decoded_width, store_for_gemm
from nvfp4.backends.triton.gemm.operands import Factors, Operand
from nvfp4.backends.triton.glu_quantize import activated
from nvfp4.backends.triton.grouped_mm import plan_decoded
from nvfp4.backends.triton.runtime.architecture import FP8, is_blackwell
from nvfp4.backends.triton.runtime.launch import Launch, cdiv
from nvfp4.backends.triton.runtime.program import run
from nvfp4.backends.triton.weight_only_linear import (
    MAX_ROW_COLUMNS,
    gemm_row_scale,
    over_power_of_two,
)
from nvfp4.calls import Moe, MoeCombine, takes
from nvfp4.spec.format import DATA_DTYPE


@triton.jit(do_not_specialize=["M", "count"])
def _lay_out_tokens_kernel(
    x, positions, offsets, out, row_scale, tiles, count, M, E, K, x_stride, top_k, out_stride,
    WHOLE_ROWS: tl.constexpr, BM: tl.constexpr, EXPERTS: tl.constexpr, R: tl.constexpr,
    C: tl.constexpr,
):  # fmt: skip
    """Store each token to its experts' rows of out float16 [M * top_k, decoded_width(K)].

    tiles: if given, the tile list for the GEMM that comes after.
    """
    if tiles is not None:
        store_tiles(tiles, count, offsets, E, BM, EXPERTS)
    tokens = tl.program_id(0) * R + tl.arange(0, R)
    inside = tokens < M
    values = load_blocks(x, tokens, inside, tl.program_id(1) * C, K, x_stride, R, C)
    p = row_power_of_two(values)
    if not WHOLE_ROWS:
        for first in range(0, K, C):
            part = load_blocks(x, tokens, inside, first, K, x_stride, R, C)
            p = tl.maximum(p, row_power_of_two(part))
    if x.dtype.element_ty == tl.float32:
        values = to_f32(from_f32(values, tl.bfloat16))
    values = over_power_of_two(values, p)
    for j in range(top_k):
        rows = tl.load(positions + tokens * top_k + j, mask=inside, other=-1)
        has_row = rows >= 0
        rows = tl.where(has_row, rows, M * top_k)  # no row of out
        store_for_gemm(values, out, rows, M * top_k, out_stride, R, C)
        tl.store(row_scale + rows, gemm_row_scale(p), mask=has_row)


@triton.jit(do_not_specialize=["count"])
def _activate_rows_kernel(
    gate_up, offsets, limit, out, row_scale, tiles, count, E, K, stride, out_stride,
    ACTIVATION: tl.constexpr, LIMITED: tl.constexpr, WHOLE_ROWS: tl.constexpr, BM: tl.constexpr,
    EXPERTS: tl.constexpr, R: tl.constexpr, C: tl.constexpr,
):  # fmt: skip
    """Store act(gate) * up of the experts' rows to out float16 [rows, decoded_width(K)].

    Unassigned rows are not written. tiles: as in _lay_out_tokens_kernel.
    """
    if tiles is not None:
        store_tiles(tiles, count, offsets, E, BM, EXPERTS)
    gate_up_dtype: tl.constexpr = gate_up.dtype.element_ty
    dtype: tl.constexpr = tl.bfloat16 if gate_up_dtype == tl.float32 else gate_up_dtype
    rows = tl.program_id(0) * R + tl.arange(0, R)
    end = tl.load(offsets + E)
    values = activated(
        gate_up, rows, rows < end, tl.program_id(1) * C, K, stride, limit, ACTIVATION, LIMITED, R, C
    )
    values = to_f32(from_f32(values, dtype))
    p = row_power_of_two(values)
    if not WHOLE_ROWS:
        for first in range(0, K, C):
            part = activated(
                gate_up, rows, rows < end, first, K, stride, limit, ACTIVATION, LIMITED, R, C
            )
            p = tl.maximum(p, row_power_of_two(to_f32(from_f32(part, dtype))))
    store_for_gemm(over_power_of_two(values, p), out, rows, end, out_stride, R, C)
    tl.store(row_scale + rows, gemm_row_scale(p), mask=rows < end)


def plan(
    call: Moe, out: Tensor, sm: int, config: MmConfig | HopperConfig | None = None
) -> tuple[Launch, ...]:
    """The launches for a prepared call on architecture sm_<sm>; config: default the one chosen."""
    if is_blackwell(sm):  # the block-scaled instruction takes NVFP4 for both operands only
        sm = FP8
    x, ids, experts = call.x, call.topk_ids, call.w13.shape[0]
    rows, (n, half_k) = ids.numel(), call.w13.shape[1:]
    offsets = torch.empty(experts + 1, dtype=torch.int32, device=x.device)
    positions = torch.empty(ids.shape, dtype=torch.int32, device=x.device)
    expected = call.expected_rows()

    def row_scale() -> Tensor:
        return torch.empty(rows, dtype=torch.float32, device=x.device)

    gate_up, x_scale = x.new_empty((rows, n)), row_scale()
    first = plan_decoded(
        partial(_plan_tokens, x, positions, offsets, x_scale),
        Operand(call.w13, call.w13_scales.view(DATA_DTYPE)),
        Factors(call.w13_global_scale, x_scale, call.w13_bias),
        *(offsets, gate_up, 2 * half_k, expected, sm, config),
    )
    y, h_scale, intermediate = x.new_empty((rows, x.shape[1])), row_scale(), 2 * call.w2.shape[2]
    second = plan_decoded(
        partial(_plan_activation, call, gate_up, offsets, h_scale),
        Operand(call.w2, call.w2_scales.view(DATA_DTYPE)),
        Factors(call.w2_global_scale, h_scale, call.w2_bias),
        *(offsets, y, intermediate, expected, sm, config),
    )
    combine = moe_combine.plan(MoeCombine(y, call.topk_weights, positions), out)
    return (*route.plan(ids, call.expert_offset, offsets, positions), *first, *second, combine)


def _plan_tokens(
    x: Tensor, positions: Tensor, offsets: Tensor, row_scale: Tensor, tiles: Tensor | None, bm: int
) -> tuple[Tensor, Launch]:
    (m, k), rows, experts = x.shape, positions.numel(), offsets.numel() - 1
    width = decoded_width(k)
    out = torch.empty(rows, width, dtype=torch.float16, device=x.device)
    tile = choose_rounding_tile(m, min(width, MAX_ROW_COLUMNS))
    launch = Launch(
        _lay_out_tokens_kernel,
        (cdiv(m, tile.rows), cdiv(width, tile.columns)),
        (
            x, positions, offsets, out, row_scale, tiles, 0 if tiles is None else tiles.shape[0],
            m, experts, k, x.stride(0), positions.shape[1], width,
        ),
        {
            "WHOLE_ROWS": width <= tile.columns,
            "BM": bm,
            "EXPERTS": experts_vector(experts),
            "R": tile.rows,
            "C": tile.columns,
        },
        num_warps=tile.num_warps,
    )  # fmt: skip
    return out, launch


def _plan_activation(
    call: Moe, gate_up: Tensor, offsets: Tensor, row_scale: Tensor, tiles: Tensor | None, bm: int
) -> tuple[Tensor, Launch]:
    rows, k, experts = gate_up.shape[0], 2 * call.w2.shape[2], offsets.numel() - 1
    width = decoded_width(k)
    out = torch.empty(rows, width, dtype=torch.float16, device=gate_up.device)
    tile = choose_rounding_tile(rows, min(width, MAX_ROW_COLUMNS))
    launch = Launch(
        _activate_rows_kernel,
        (cdiv(rows, tile.rows), cdiv(width, tile.columns)),
        (
            gate_up, offsets, call.swiglu_limit or 0.0, out, row_scale, tiles,
            0 if tiles is None else tiles.shape[0], experts, k, gate_up.stride(0), width,
        ),
        {
            "ACTIVATION": call.activation,
            "LIMITED": call.swiglu_limit is not None,
            "WHOLE_ROWS": width <= tile.columns,
            "BM": bm,
            "EXPERTS": experts_vector(experts),
            "R": tile.rows,
            "C": tile.columns,
        },
        num_warps=tile.num_warps,
    )  # fmt: skip
    return out, launch


@takes(Moe.prepared)
def weight_only_moe(call: Moe, out: Tensor) -> None:
    run(*plan(call, out, target_of(out.device).sm))
