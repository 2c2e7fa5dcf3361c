"""Every Triton kernel compiles for every architecture on a machine without a GPU, to the
instructions meant.

With another release of Triton first in PYTHONPATH, this file checks that one.
"""

import json
import os
import subprocess
import sys

import pytest
from paths import ROOT

from nvfp4.backends import triton
from nvfp4.backends.problem import Problem
from nvfp4.backends.target import Target
from nvfp4.backends.triton.runtime.architecture import (
    ASSEMBLED_SINCE,
    BLOCK_SCALED_SINCE,
    gemm_architecture,
    multiplies_nvfp4,
    release,
)

SCRIPT = ROOT / "tests" / "support" / "compile_triton.py"
ARCHITECTURES = (80, 89, 90, 100, 110, 120, 121)
"""sm_86 compiles what sm_80 does, and sm_103 what sm_100 does."""


def problem(op: str, sm: int) -> Problem:
    return Problem(op, Target("cuda", sm))


@pytest.fixture(autouse=True)
def compiled_triton(monkeypatch: pytest.MonkeyPatch, compiles: None) -> None:
    """Triton as on a machine with a GPU: not interpreted."""
    monkeypatch.setenv("TRITON_INTERPRET", "0")


def compile_kernels(sm: int) -> subprocess.CompletedProcess[str]:
    paths = [str(ROOT), os.environ.get("PYTHONPATH", "")]
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(filter(None, paths))}
    command = [sys.executable, str(SCRIPT), str(sm)]
    return subprocess.run(command, env=environment, capture_output=True, text=True)


@pytest.mark.parametrize("sm", ASSEMBLED_SINCE)
def test_an_architecture_that_ptxas_does_not_know_is_refused_with_a_sentence(sm):
    reasons = triton.BACKEND.reasons(problem("quantize", sm))
    if release("triton") >= ASSEMBLED_SINCE[sm]:
        assert not reasons
        return
    assert "needs triton >= 3.7 on cuda sm_110, got 3.6" in reasons[0]
    failed = compile_kernels(sm)
    assert failed.returncode and "is not defined for option 'gpu-name'" in failed.stderr


@pytest.mark.parametrize("sm", BLOCK_SCALED_SINCE)
def test_operands_are_decoded_where_triton_cannot_compile_the_block_scaled_instruction(sm):
    able = release("triton") >= BLOCK_SCALED_SINCE[sm]
    assert multiplies_nvfp4(sm) == able
    assert bool(triton.BACKEND.reasons(problem("linear", sm))) == able
    assert not triton.BACKEND.reasons(problem("mm", sm))


@pytest.mark.parametrize("sm", ARCHITECTURES)
def test_every_kernel_compiles_to_the_instructions_meant(sm):
    if reasons := triton.BACKEND.reasons(problem("quantize", sm)):
        pytest.skip("; ".join(reasons))
    done = compile_kernels(sm)
    assert done.returncode == 0, done.stderr[-3000:]
    found = json.loads(done.stdout)
    instructions, stack = found["instructions"], found["stack"]
    runs = {op for op in triton.BACKEND.ops if not triton.BACKEND.reasons(problem(op, sm))}
    assert set(instructions) == {*runs, "row_scales", "route"}

    def has(kernel: str, *parts: str) -> bool:
        return any(all(part in name for part in parts) for name in instructions[kernel])

    # What is not packed is rounded all the same, and by no other arithmetic.
    if "linear" in runs:
        assert has("linear", "div.rn.f32")
        for forbidden in ("div.full", "div.approx", "rcp.approx"):
            assert not has("linear", forbidden), forbidden
        assert has("linear", "cvt.rn.satfinite.e4m3x2.f32") == (gemm_architecture(sm) >= 90)
    # A float32 becomes E4M3 in one rounding. Triton 3.6 goes through float16 on sm_89.
    for kernel in instructions:
        assert not has(kernel, "cvt", "e4m3x2.f16x2"), kernel
    # Nothing that is still read is overwritten by a copy ahead.
    assert found["slots"]["early"] == 0 and (found["slots"]["all"] > 0) == (sm == 90)
    # The GEMMs run on the tensor cores meant, and keep their sums in registers.
    spilled = 8 if sm == 100 and release("triton") == (3, 6) else 0  # bytes of mm's 128x128 tile
    assert all(stack[gemm] <= spilled for gemm in stack if gemm.endswith(("mm", "linear")))
    for gemm in ("mm", "grouped_mm"):
        assert has(gemm, "wgmma.mma_async", "f32.f16.f16") == (sm == 90)
        native = multiplies_nvfp4(sm)
        assert has(gemm, "tcgen05.mma", "mxf4nvf4", "block_scale") == (native and sm < 120)
        assert has(gemm, "mma.sync", "mxf4nvf4", "block_scale") == (native and sm >= 120)
        few_tokens = (90,) if gemm == "mm" else ()
        assert has(gemm, "mma.sync", "f32.f16.f16.f32") == (
            not native and sm != 90 or sm in few_tokens
        )
    for kernel in ("quantize", "quantize_dynamic", "glu_quantize", "moe_dispatch"):
        # The hardware's conversion to E2M1 is used where it exists, and only there.
        assert has(kernel, "cvt.rn.satfinite.e2m1x2.f32") == (sm >= 100)
        # Rounding is the spec's: no fused multiply-add that rounds otherwise than its sum would, no
        # approximate division.
        assert has(kernel, "div.rn.f32")
        for forbidden in ("fma.rn", "div.full", "div.approx", "rcp.approx"):
            assert not has(kernel, forbidden), forbidden
        assert has(kernel, "cvt.rn.satfinite.e4m3x2.f32") == (sm >= 90)
