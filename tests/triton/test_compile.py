"""What ptxas makes of the kernels' PTX: whether it knows the architecture, and what spills.

test_emulated.py looks at the PTX itself, and executes it.
With another release of Triton first in PYTHONPATH, this file checks that one.
"""

import pytest
from assembly import assemble, given_back
from kernel_forms import FORMS, Form, forms_on
from launches import planned
from triton.compiler.compiler import get_sass

from nvfp4.backends import triton
from nvfp4.backends.emulation import ARCHITECTURES
from nvfp4.backends.problem import Problem
from nvfp4.backends.target import Target
from nvfp4.backends.triton.runtime import architecture
from nvfp4.backends.triton.runtime.architecture import (
    ASSEMBLED_SINCE,
    BLOCK_SCALED_SINCE,
    multiplies_nvfp4,
    release,
)
from nvfp4.backends.triton.runtime.ptx import compiled
from nvfp4.bench.cubin import sass, stack_bytes

pytestmark = pytest.mark.compiles

SHARED_MEMORY = {80: 163, 86: 99, 89: 99, 90: 227, 100: 227, 103: 227, 110: 227, 120: 99, 121: 99}
SHARED_MEMORY = {sm: kib * 1024 for sm, kib in SHARED_MEMORY.items()}
"""What one block may ask for (CUDA C++ programming guide, compute capabilities)."""

GEMM_ARCHITECTURES = (80, 90, 100, 120)
"""Architectures whose GEMMs differ: sm_89 multiplies as sm_80 does."""

QUANTIZER = "quantize_dynamic bf16"

PORTABLE_ON_HOPPER = {
    "mm 8x64, split-K": 3,
    "mm 16x32, split-K": 3,
    "mm 64x64 unaligned": 1,
    "linear W4A16": 1,
    "grouped_mm 64x128 unaligned": 1,
}
"""Pipeline stages with Triton 3.7; the first two forms are multiplied by mma.sync."""


def problem(op: str, sm: int) -> Problem:
    return Problem(op, Target("cpu", sm))


def refused(sm: int) -> str:
    return "; ".join(triton.BACKEND.reasons(problem("quantize", sm)))


def gemms(sm: int) -> list[Form]:
    return [f for f in forms_on(sm) if f.name.startswith(("mm", "grouped_mm", "linear W4A16"))]


@pytest.mark.parametrize("sm", ASSEMBLED_SINCE)
def test_an_architecture_that_ptxas_does_not_know_is_refused_with_a_sentence(sm):
    if release("triton") >= ASSEMBLED_SINCE[sm]:
        assert not refused(sm)
        return
    assert "needs triton >= 3.7 on emulated sm_110, got 3.6" in refused(sm)
    (launch,) = planned(next(f for f in FORMS if f.name == QUANTIZER), 80)
    ptx = compiled(launch, 80)
    unknown = ptx._replace(text=ptx.text.replace(".target sm_80", ".target sm_110a"))
    with pytest.raises(Exception, match="is not defined for option 'gpu-name'"):
        assemble(unknown, sm)


@pytest.mark.parametrize("sm", BLOCK_SCALED_SINCE)
def test_operands_are_decoded_where_triton_cannot_compile_the_block_scaled_instruction(sm):
    able = release("triton") >= BLOCK_SCALED_SINCE[sm]
    assert multiplies_nvfp4(sm) == able
    assert bool(triton.BACKEND.reasons(problem("linear", sm))) == able
    assert not triton.BACKEND.reasons(problem("mm", sm))


@pytest.mark.parametrize(
    "sm, name",
    [
        (90, "mm 64x64 unaligned"),
        (90, "linear W4A16"),
        (100, "mm block-scaled 64"),
        (100, "linear W4A16"),
    ],
)
def test_copied_tiles_were_not_fenced_before_the_tensor_cores_read_them(sm, name):
    launch = planned(next(f for f in FORMS if f.name == name), sm)[-1]
    text = compiled(launch, sm).text
    assert "cp.async.c" in text and ("wgmma." in text or "tcgen05.mma" in text)
    assert "fence.proxy.async" in text


def test_the_next_step_overwrote_registers_that_wgmma_still_read(monkeypatch):
    monkeypatch.setattr(architecture, "release", lambda package: (3, 7))
    stages = {f.name: planned(f, 90)[-1].num_stages for f in FORMS if f.name in PORTABLE_ON_HOPPER}
    assert stages == PORTABLE_ON_HOPPER


@pytest.mark.parametrize("sm", ARCHITECTURES)
def test_ptxas_assembles_a_kernel_for_every_architecture(sm):
    if refused(sm):
        pytest.skip(refused(sm))
    (launch,) = planned(next(f for f in FORMS if f.name == QUANTIZER), sm)
    assert assemble(compiled(launch, sm), sm)


@pytest.mark.parametrize("name", ["quantize by four_over_six", "glu_quantize of experts, relu2"])
def test_ptxas_made_one_operation_of_a_product_and_a_sum_on_sm_100(name):
    """ptxas 12.9 contracts mul.rn.f32x2 and add.rn.f32x2, which no emulator of PTX can see."""
    if refused(100):
        pytest.skip(refused(100))
    (launch,) = planned(next(f for f in FORMS if f.name == name), 100)
    ptx = compiled(launch, 100)
    instructions = [i.opcode for i in sass(assemble(ptx, 100))]
    assert instructions.count("FFMA2") == ptx.text.count("fma.rn.f32x2")


@pytest.mark.parametrize(
    "sm, form",
    [(sm, form) for sm in GEMM_ARCHITECTURES for form in gemms(sm)],
    ids=lambda value: f"sm_{value}" if isinstance(value, int) else str(value),
)
def test_a_gemm_fits_and_keeps_its_sums_in_registers(sm, form):
    if refused(sm):
        pytest.skip(refused(sm))
    launch = planned(form, sm)[-1]
    ptx = compiled(launch, sm)
    assert ptx.shared <= SHARED_MEMORY[sm]
    cubin = assemble(ptx, sm)
    # Triton 3.6 spills 8 bytes of mm's 128x128 tile.
    allowed = 8 if sm == 100 and release("triton") == (3, 6) else 0
    per_sm = launch.constants.get("PER_SM", 1)
    if per_sm > 1:
        # Two programs fit into an SM, each with 1 KiB that CUDA keeps. ptxas 13 keeps up to eight
        # words of a thread's place in memory and reads them outside the loops that multiply.
        assert per_sm * (ptx.shared + 1024) <= 228 * 1024
        allowed = 32
    # Where K is no multiple of the tile's BK, some tiles spill: up to 936 bytes on sm_120.
    assert stack_bytes(cubin) <= allowed or not launch.constants.get("EVEN_K", True)
    if "B_STAGES" in launch.constants:
        # Nothing that is still read is overwritten by a copy ahead.
        stages, early = given_back(get_sass(cubin))
        assert stages and not early
