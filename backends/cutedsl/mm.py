"""nvfp4::mm on sm_100: the tile chosen, the kernel launched; on CPU tensors, emulated."""

import functools

import torch
from torch import Tensor

from nvfp4.backends.cutedsl.gemm.choose import SMS, choose_config
from nvfp4.backends.cutedsl.gemm.config import Tile
from nvfp4.backends.cutedsl.gemm.launch import Launch, plan, run
from nvfp4.backends.environment import may_split_k


@functools.cache
def multiprocessors(device: torch.device) -> int:
    if device.type != "cuda":
        return SMS
    return torch.cuda.get_device_properties(device).multi_processor_count


def emulate(launch: Launch) -> None:
    import nvfp4.backends.cutedsl.runtime.emulated as emulated  # not needed where there is a GPU

    emulated.run(launch)


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
    sms = sms or multiprocessors(out.device)
    tile = tile or choose_config(m, n, k, out.element_size(), sms, may_split_k()).tile
    launch = plan(a, b, a_scales, b_scales, alpha, row_scale, bias, out, tile, sms)
    if out.is_cuda:
        run(launch)
    else:
        emulate(launch)
