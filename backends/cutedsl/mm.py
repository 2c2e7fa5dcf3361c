"""nvfp4::mm on sm_100: the tile chosen, the kernel launched; on CPU tensors, emulated."""

import functools

import torch
from torch import Tensor

from nvfp4.backends.cutedsl.gemm.choose import SMS, choose_config
from nvfp4.backends.cutedsl.gemm.launch import Launch, plan, run
from nvfp4.backends.environment import may_split_k
from nvfp4.calls import Mm, takes


@functools.cache
def multiprocessors(device: torch.device) -> int:
    if device.type != "cuda":
        return SMS
    return torch.cuda.get_device_properties(device).multi_processor_count


def run_or_emulate(launch: Launch) -> None:
    """Run a launch on the GPU that its tensors are on, or on CPU tensors by the emulator."""
    if launch.tensors["out"].is_cuda:
        run(launch)
        return
    import nvfp4.backends.cutedsl.runtime.emulated as emulated  # not needed where there is a GPU

    emulated.run(launch)


@takes(Mm.prepared)
def mm(call: Mm, out: Tensor) -> None:
    (m, n), k = out.shape, 2 * call.a.shape[1]
    sms = multiprocessors(out.device)
    tile = choose_config(m, n, k, out.element_size(), sms, may_split_k()).tile
    run_or_emulate(plan(call, out, tile, sms))
