"""nvfp4::mm on sm_100: choose a tile, plan the launch, run it. CPU tensors run in the emulator."""

from torch import Tensor

from nvfp4.backends.cutedsl.gemm.choose import choose_config
from nvfp4.backends.cutedsl.gemm.launch import plan, run_or_emulate, sms_of
from nvfp4.backends.environment import may_split_k
from nvfp4.calls import Mm, takes


@takes(Mm.prepared)
def mm(call: Mm, out: Tensor) -> None:
    (m, n), k = out.shape, 2 * call.a.shape[1]
    sms = sms_of(out.device)
    tile = choose_config(m, n, k, out.element_size(), sms, may_split_k()).tile
    run_or_emulate(plan(call, out, tile, sms))
