"""nvfp4::mm on sm_100: choose a tile, plan the launch, run it. CPU tensors run in the emulator."""

from torch import Tensor

from nvfp4.backends.cutedsl.gemm.choose import choose_config
from nvfp4.backends.cutedsl.gemm.config import Tile
from nvfp4.backends.cutedsl.gemm.launch import plan, run, sms_of
from nvfp4.backends.settings import may_split_k


def mm(
    a: Tensor,
    b: Tensor,
    a_scales: Tensor,
    b_scales: Tensor,
    alpha: Tensor,
    row_scale: Tensor | None,
    bias: Tensor | None,
    out: Tensor,
    tile: Tile | None = None,
    sms: int = 0,
) -> None:
    """out [M, N] = (A B^T) * (row_scale[m] * alpha[m or 0, segment of n]) + bias[n].

    tile: default the one chosen; sms: to run on, default all.
    """
    (m, n), k = out.shape, 2 * a.shape[1]
    sms = sms or sms_of(out.device)
    tile = tile or choose_config(m, n, k, out.element_size(), sms, may_split_k()).tile
    launch = plan(a, b, a_scales, b_scales, alpha, row_scale, bias, out, tile, sms)
    run(launch)
