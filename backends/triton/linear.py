"""A linear layer before Blackwell (W4A4): activations are rounded to NVFP4, then multiplied.

The GEMM reads decoded activations. So the first of the two launches quantizes and decodes them in
one pass, in the order of K that the GEMM uses, and never packs them.
"""

from functools import partial

import torch
import triton
import triton.language as tl
from torch import Tensor

from nvfp4.backends.target import target_of
from nvfp4.backends.triton.device.pdl import wait_for_previous_kernel
from nvfp4.backends.triton.device.tile_config import LONGEST_ROW, Tile, choose_rounding_tile
from nvfp4.backends.triton.device.tiles import load_blocks, round_tile, row_global_scale
from nvfp4.backends.triton.gemm.config import HopperConfig, MmConfig
from nvfp4.backends.triton.gemm.decode import decoded_width, store_for_gemm
from nvfp4.backends.triton.gemm.operands import Factors, Operand
from nvfp4.backends.triton.gemm.split_k import zero_tile_counters
from nvfp4.backends.triton.mm import plan_decoded
from nvfp4.backends.triton.quantize_dynamic import plan_row_scales
from nvfp4.backends.triton.runtime.architecture import gemm_architecture, supports_pdl
from nvfp4.backends.triton.runtime.launch import Launch, cdiv
from nvfp4.backends.triton.runtime.program import run
from nvfp4.calls import Linear, takes
from nvfp4.spec.format import DATA_DTYPE


@triton.jit(do_not_specialize=["tiles", "M", "p_stride"])
def _round_rows_kernel(
    x, global_scale, out, row_scale, tile_counters, tiles, M, K, x_stride, p_stride, out_stride,
    DYNAMIC: tl.constexpr, SCALE_RULE: tl.constexpr, R: tl.constexpr, C: tl.constexpr,
    SM: tl.constexpr,
):  # fmt: skip
    """Round x to NVFP4 values in out float16 [M, decoded_width(K)].

    DYNAMIC: find each row's own p, store it in row_scale [M]; a program then holds whole rows.
    """
    wait_for_previous_kernel(SM)
    zero_tile_counters(tile_counters, tiles)
    rows = tl.program_id(0) * R + tl.arange(0, R)
    values = load_blocks(x, rows, rows < M, tl.program_id(1) * C, K, x_stride, R, C)
    if DYNAMIC:
        p = row_global_scale(values, SCALE_RULE)
        tl.store(row_scale + rows, p, mask=rows < M)
    else:
        p = tl.load(global_scale + rows * p_stride, mask=rows < M, other=1.0)
    store_for_gemm(round_tile(values, p, SCALE_RULE, SM), out, rows, M, out_stride, R, C)


def plan(
    call: Linear,
    out: Tensor,
    sm: int,
    config: MmConfig | HopperConfig | None = None,
    tile: Tile | None = None,
) -> tuple[Launch, ...]:
    """The launches for a prepared call on architecture sm_<sm>; config, tile: default those chosen.

    With x_global_scale None, each row finds its own: K is at most LONGEST_ROW.
    """
    x, p = call.x, call.x_global_scale
    m, k = x.shape
    sm = gemm_architecture(sm)
    row_scale = p if p is not None else torch.empty(m, dtype=torch.float32, device=x.device)
    rounding = partial(_plan_rounding, x, p, row_scale, call.scale_rule, sm, tile)
    weight = Operand(call.weight, call.weight_scales.view(DATA_DTYPE))
    factors = Factors(call.weight_global_scale[None], row_scale, call.bias)
    return plan_decoded(rounding, weight, factors, out, k, sm, config)


def _plan_rounding(
    x: Tensor,
    p: Tensor | None,
    row_scale: Tensor,
    scale_rule: str,
    sm: int,
    tile: Tile | None,
    tile_counters: Tensor | None,
) -> tuple[Tensor, Launch]:
    (m, k), width = x.shape, decoded_width(x.shape[1])
    rounded = torch.empty(m, width, dtype=torch.float16, device=x.device)
    tile = tile or choose_rounding_tile(m, width)
    tiles = 0 if tile_counters is None else tile_counters.numel()
    launch = Launch(
        _round_rows_kernel,
        (cdiv(m, tile.rows), cdiv(width, tile.columns)),
        (
            x, p, rounded, row_scale, tile_counters, tiles, m, k, x.stride(0),
            int(p is not None and p.numel() > 1), width,
        ),
        {
            "DYNAMIC": p is None,
            "SCALE_RULE": scale_rule,
            "R": tile.rows,
            "C": tile.columns,
            "SM": sm,
        },
        num_warps=tile.num_warps,
        launch_pdl=supports_pdl(sm),
    )  # fmt: skip
    return rounded, launch


@takes(Linear.prepared)
def linear(call: Linear, out: Tensor) -> None:
    x = call.x
    if call.x_global_scale is None and x.shape[1] > LONGEST_ROW:
        row_scale = x.new_empty(x.shape[0], dtype=torch.float32)
        run(plan_row_scales(x, row_scale, call.scale_rule))
        call = call._replace(x_global_scale=row_scale)
    run(*plan(call, out, target_of(x.device).sm))
