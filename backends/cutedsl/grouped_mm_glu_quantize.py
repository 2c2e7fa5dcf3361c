"""nvfp4::grouped_mm_glu_quantize on sm_100: one kernel, which never writes gate and up.

CPU tensors run in the emulator.
"""

from nvfp4.backends.cutedsl.gemm.choose import choose_grouped_config
from nvfp4.backends.cutedsl.gemm.launch import run_or_emulate, sms_of
from nvfp4.backends.cutedsl.gemm.launch_grouped import plan_glu
from nvfp4.calls import GroupedMmGluQuantize, Quantized, takes


@takes(GroupedMmGluQuantize.prepared)
def grouped_mm_glu_quantize(call: GroupedMmGluQuantize, out: Quantized) -> None:
    experts, n, half_k = call.b.shape
    sms = sms_of(out.data.device)
    shape = call.expected_rows, experts, n, 2 * half_k
    config = choose_grouped_config(*shape, sms=sms, glu=True)
    run_or_emulate(plan_glu(call, out, config.tile, sms))
