"""What hardware would not launch, or would do more often than once: refused by the emulator."""

import pytest
import torch
from emulated_ptx import (
    E2M1,
    M128,
    MATRIX,
    N8,
    ONE,
    SCALES,
    mma,
    run,
)
from right_kernels import MULTIPLY, PUT

from nvfp4.emulator import Deadlock, Hazard, Kind, execute
from nvfp4.emulator.machine.tensor_pipe import ISA_PIPELINES

X = torch.arange(1024, dtype=torch.int32)


def refused(kind: Kind, says: str, body: str, **options) -> None:
    memory = {"x": X, "out": torch.zeros(1024, dtype=torch.int32)}
    with pytest.raises(Hazard, match=says) as raised:
        run(body, memory, **options)
    assert raised.value.kind is kind


def test_shared_memory_that_no_sm_has():
    run("", smem=232448)
    refused(Kind.LAUNCH, "232449 bytes of shared memory", "", smem=232449)


def test_clusters_of_more_than_8_ctas_need_an_attribute():
    run("", grid=(8, 1, 1), cluster=(8, 1, 1))
    refused(Kind.LAUNCH, "clusters of 16 CTAs; 8", "", grid=(16, 1, 1), cluster=(4, 4, 1))


def test_threads_and_registers_that_no_sm_has():
    run("", block=1024)
    refused(Kind.LAUNCH, "1056 threads", "", block=1056)
    ptx = ".version 8.7\n.target sm_100a\n.address_size 64\n.visible .entry k() {}{{ ret; }}"
    execute(ptx.format(".maxnreg 64 "), "k", (1, 1, 1), (1024, 1, 1))
    with pytest.raises(Hazard, match="72 registers x 1024 threads"):
        execute(ptx.format(".maxnreg 72 "), "k", (1, 1, 1), (1024, 1, 1))


def test_a_bulk_store_by_every_lane_is_32_stores():
    run(PUT, {"out": torch.zeros(1024, dtype=torch.int32)})
    all_lanes = PUT.replace("@%q14 cp", "cp")
    refused(Kind.MANY_LANES, "32 lanes issue", all_lanes)
    run(all_lanes, {"out": torch.zeros(1024, dtype=torch.int32)}, one_lane_stores=False)


def test_a_bulk_prefetch_by_every_lane_is_32_prefetches():
    prefetch = "@%q14 cp.async.bulk.prefetch.L2.global [%x], 512;\n"
    run(ONE + prefetch, {"x": X})
    refused(Kind.MANY_LANES, "32 lanes issue", ONE + prefetch.replace("@%q14 ", ""))


@pytest.mark.parametrize("bit", [14, 15, 30, 31, 48, 53, 60])
@pytest.mark.parametrize("which", ["a", "b", "scales_a"])
def test_reserved_bits_of_a_matrix_descriptor(bit, which):
    right = SCALES if which == "scales_a" else MATRIX
    says = "matrix descriptor .* reserved bits"
    refused(Kind.DESCRIPTOR, says, mma(**{which: right | 1 << bit}), block=128)


@pytest.mark.parametrize("bit", [0, 1, 3, 6, 24, 25, 26])
def test_reserved_bits_of_an_instruction_descriptor(bit):
    right = M128 | N8 | E2M1
    says = "instruction descriptor .* reserved bits"
    refused(Kind.DESCRIPTOR, says, mma(description=right | 1 << bit), block=128)


# Two warps arrive at a barrier in turn; warp 1 waits for each phase, and tells warp 0 or not.
PHASES = (
    "setp.eq.u32 %q14,%t,0; @%q14 mbarrier.init.shared.b64 [%s],1;\n"
    "@%q14 mbarrier.init.shared.b64 [%s+8],1; fence.mbarrier_init.release.cluster; bar.sync 0;\n"
    "setp.lt.u32 %q0,%t,32; @!%q0 bra WAITER;\n"
    "@%q14 mbarrier.arrive.shared.b64 _,[%s];\n"
    "{ TOLD: mbarrier.try_wait.parity.shared.b64 %q13,[%s+8],0; @!%q13 bra TOLD; }\n"
    "@%q14 mbarrier.arrive.shared.b64 _,[%s]; bra E;\nWAITER: setp.eq.u32 %q14,%t,32;\n"
    "{ W: mbarrier.try_wait.parity.shared.b64 %q13,[%s],0; @!%q13 bra W; }\n"
    "@%q14 mbarrier.arrive.shared.b64 _,[%s+8];\n"
    "{ W: mbarrier.try_wait.parity.shared.b64 %q13,[%s],1; @!%q13 bra W; }\nE:"
)


def test_a_phase_that_may_end_before_it_was_waited_for():
    """It is noticed where the waiter comes in time, too: nothing but the schedule makes it."""
    begin, end = (
        PHASES.index("{ TOLD"),
        PHASES.index("@%q14 mbarrier.arrive.shared.b64 _,[%s]; bra"),
    )
    untold = PHASES[:begin] + PHASES[end:]
    in_time = 0
    for seed in range(16):
        run(PHASES, block=64, seed=seed, quantum=2)
        with pytest.raises((Hazard, Deadlock)) as raised:
            run(untold, block=64, seed=seed, quantum=2)
        if isinstance(raised.value, Hazard):
            assert raised.value.kind is Kind.MBARRIER and "would miss it" in raised.value.message
            in_time += 1
    assert in_time


@pytest.mark.parametrize("seed", range(2))
def test_an_order_of_tcgen05_instructions_that_the_isa_does_not_have(seed):
    memory = {"x": X, "out": torch.zeros(1024, dtype=torch.int32)}
    run(MULTIPLY, memory, block=128, seed=seed, tcgen05_pipelines=ISA_PIPELINES)
    with pytest.raises(Hazard, match="tcgen05.cp") as raised:
        without = ISA_PIPELINES - {("cp", "mma")}
        run(MULTIPLY, memory, block=128, seed=seed, tcgen05_pipelines=without)
    assert raised.value.kind is Kind.EARLY_READ and "tcgen05.mma" in raised.value.text
