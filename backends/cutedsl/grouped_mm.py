"""nvfp4::grouped_mm on sm_100: choose a tile, plan the launch, run it.

CPU tensors run in the emulator.
"""

from torch import Tensor

from nvfp4.backends.cutedsl.gemm.choose import choose_grouped_config
from nvfp4.backends.cutedsl.gemm.launch import run_or_emulate, sms_of
from nvfp4.backends.cutedsl.gemm.launch_grouped import plan_grouped
from nvfp4.calls import GroupedMm, takes


@takes(GroupedMm.prepared)
def grouped_mm(call: GroupedMm, out: Tensor) -> None:
    experts, n, half_k = call.b.shape
    sms, size = sms_of(out.device), out.element_size()
    config = choose_grouped_config(call.expected_rows, experts, n, 2 * half_k, size, sms)
    run_or_emulate(plan_grouped(call, out, config.tile, sms))
