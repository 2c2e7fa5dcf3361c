"""Triton kernels: one source for every NVIDIA GPU from sm_80 on, and for Triton's interpreter on a
CPU.
"""

import os
from importlib.metadata import PackageNotFoundError, version

from nvfp4.backends.contract import Backend, Problem

OLDEST = (3, 6)
OLDEST_SM = 80


def interpreting() -> bool:
    """Whether Triton's kernels are interpreted in this process; Triton reads the variable once, at
    import.
    """
    return os.environ.get("TRITON_INTERPRET", "").lower() in ("1", "true", "yes", "on", "y")


def _needs(problem: Problem) -> list[str]:
    needs = []
    try:
        installed = version("triton")
        if tuple(int(part) for part in installed.split(".")[:2]) < OLDEST:
            needs.append(f"needs triton >= {OLDEST[0]}.{OLDEST[1]}, got {installed}")
    except PackageNotFoundError:
        needs.append("needs the package triton, got none")
    target = problem.target
    if not interpreting() and target.sm < OLDEST_SM:
        needs.append(
            f"needs an NVIDIA GPU of sm_{OLDEST_SM} or later, or TRITON_INTERPRET=1, got {target}"
        )
    return needs


def _only_by_name(problem: Problem) -> str:
    return "Triton's interpreter checks kernels, slowly" if interpreting() else ""


BACKEND = Backend(
    name="triton",
    ops=("quantize", "quantize_dynamic", "dequantize", "silu_mul_quantize", "mm"),
    needs=_needs,
    only_by_name=_only_by_name,
)
