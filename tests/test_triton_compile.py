"""Every Triton kernel compiles for every architecture on a machine without a GPU, to the
instructions meant.
"""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from nvfp4.backends import triton
from nvfp4.backends.contract import Problem, Target

SCRIPT = Path(__file__).parent / "compile_triton.py"
ARCHITECTURES = (80, 86, 89, 90, 100, 103, 120)


def problem(op: str, sm: int) -> Problem:
    return Problem(op, Target("cuda", sm))


@pytest.mark.parametrize("sm", ARCHITECTURES)
def test_every_kernel_compiles_to_the_instructions_meant(sm):
    environment = {**os.environ, "PYTHONPATH": str(SCRIPT.parent.parent)}
    done = subprocess.run(
        [sys.executable, str(SCRIPT), str(sm)], env=environment, capture_output=True, text=True
    )
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
        assert has("linear", "cvt", "e4m3") == (sm >= 89)
    # Nothing that is still read is overwritten by a copy ahead.
    assert found["slots"]["early"] == 0 and (found["slots"]["all"] > 0) == (sm == 90)
    # The GEMMs run on the tensor cores meant, and keep their sums in registers.
    assert not any(stack[gemm] for gemm in stack if gemm.endswith(("mm", "linear")))
    for gemm in ("mm", "grouped_mm"):
        assert has(gemm, "wgmma.mma_async", "f32.f16.f16") == (sm == 90)
        assert has(gemm, "tcgen05.mma", "mxf4nvf4", "block_scale") == (sm in (100, 103))
        assert has(gemm, "mma.sync", "mxf4nvf4", "block_scale") == (sm == 120)
        few_tokens = (90,) if gemm == "mm" else ()
        assert has(gemm, "mma.sync", "f32.f16.f16.f32") == (sm in (80, 86, 89, *few_tokens))
    for kernel in ("quantize", "quantize_dynamic", "glu_quantize", "moe_dispatch"):
        # The hardware's conversion to E2M1 is used where it exists, and only there.
        assert has(kernel, "cvt.rn.satfinite.e2m1x2.f32") == (sm >= 100)
        # Rounding is the spec's: no fused multiply-add that rounds otherwise than its sum would, no
        # approximate division. sm_80 has no FP8
        # type; where there is one, its conversion is E4M3's own rounding.
        assert has(kernel, "div.rn.f32")
        for forbidden in ("fma.rn", "div.full", "div.approx", "rcp.approx"):
            assert not has(kernel, forbidden), forbidden
        assert has(kernel, "cvt.rn.satfinite.e4m3x2.f32") == (sm >= 89)
