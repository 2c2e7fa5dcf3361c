"""nvfp4::grouped_mm on sm_100: choose a tile, plan the launch, run it.

CPU tensors run in the emulator.
"""

from torch import Tensor

from nvfp4.backends.cutedsl.gemm.choose import choose_grouped_config
from nvfp4.backends.cutedsl.gemm.config import Tile
from nvfp4.backends.cutedsl.gemm.launch import run, sms_of
from nvfp4.backends.cutedsl.gemm.launch_grouped import plan_grouped


def grouped_mm(
    a: Tensor,
    b: Tensor,
    a_scales: Tensor,
    b_scales: Tensor,
    alpha: Tensor,
    row_scale: Tensor | None,
    bias: Tensor | None,
    offsets: Tensor,
    out: Tensor,
    likely_rows: int | None = None,
    tile: Tile | None = None,
    sms: int = 0,
) -> None:
    """out [R, N]: rows of expert e are (A B[e]^T) * (row_scale[m] * alpha[e, segment of n]) +
    bias[e, n]; rows from offsets[E] on are left alone.

    likely_rows: how many are expected to be somebody's, by which a tile is chosen; default all.
    tile: default that one; sms: to run on, default all.
    """
    sms = sms or sms_of(out.device)
    (rows, n), experts, k = out.shape, b.shape[0], 2 * b.shape[2]
    if tile is None:
        rows, size = likely_rows or rows, out.element_size()
        tile = choose_grouped_config(rows, experts, n, k, size, sms).tile
    launch = plan_grouped(a, b, a_scales, b_scales, alpha, row_scale, bias, offsets, out, tile, sms)
    run(launch)
