"""nvfp4::grouped_mm_glu_quantize on sm_100: one kernel, which never writes gate and up.

CPU tensors run in the emulator.
"""

import torch
from torch import Tensor

from nvfp4.backends.cutedsl.gemm.choose import choose_grouped_config
from nvfp4.backends.cutedsl.gemm.config import Tile
from nvfp4.backends.cutedsl.gemm.launch import run, sms_of
from nvfp4.backends.cutedsl.gemm.launch_grouped import plan_glu


def grouped_mm_glu_quantize(
    a: Tensor,
    b: Tensor,
    a_scales: Tensor,
    b_scales: Tensor,
    alpha: Tensor,
    row_scale: Tensor | None,
    offsets: Tensor,
    p: Tensor,
    limit: float | None,
    activation: str,
    dtype: torch.dtype,
    data: Tensor,
    scales: Tensor,
    global_scale: Tensor,
    likely_rows: int | None = None,
    tile: Tile | None = None,
    sms: int = 0,
) -> None:
    """data [R, I/2], scales grouped, global_scale [R] = quantize(act(gate) * up, p), gate and up
    the halves of grouped_mm's columns, rounded to dtype. Of data and global_scale the rows from
    offsets[E] on are left alone; of scales the tiles that the experts' rows take are written whole.

    likely_rows: how many are expected to be somebody's, by which a tile is chosen; default all.
    tile: default that one; sms: to run on, default all.
    """
    sms = sms or sms_of(data.device)
    if tile is None:
        experts, n, half_k = b.shape
        tile = choose_grouped_config(
            likely_rows or a.shape[0], experts, n, 2 * half_k, sms=sms, glu=True
        ).tile
    launch = plan_glu(
        a, b, a_scales, b_scales, alpha, row_scale, offsets, p, limit, activation, dtype,
        data, scales, global_scale, tile, sms,
    )  # fmt: skip
    run(launch)
