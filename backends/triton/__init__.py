"""The Triton backend: one source for every NVIDIA GPU from sm_80 on, and for a CPU's interpreter.

Operators are the modules here, one launcher each. Imports go one way: runtime, device, gemm,
hopper, operators, warmup.
"""

from collections.abc import Iterable

from nvfp4.backends.backend import Backend, Compilation
from nvfp4.backends.emulation import emulated_slowly, emulator_needs
from nvfp4.backends.problem import Problem
from nvfp4.backends.target import sm_of
from nvfp4.backends.triton.runtime.architecture import (
    ASSEMBLED_SINCE,
    installed,
    interpreting,
    multiplies_nvfp4,
    release,
)
from nvfp4.backends.workload import Workload

OLDEST = (3, 6)
OLDEST_SM = 80


def _needs(problem: Problem) -> list[str]:
    needs = []
    triton, numpy = release("triton"), release("numpy")
    if not triton:
        needs.append("needs the package triton, got none")
    elif triton < OLDEST:
        needs.append(f"needs triton >= {OLDEST[0]}.{OLDEST[1]}, got {installed('triton')}")
    if problem.target.emulated:
        needs += emulator_needs(problem.target.sm)
    if interpreting() and not problem.target.emulated:
        if not numpy:
            needs.append("needs the package numpy to interpret kernels, got none")
        elif triton < (3, 7) and numpy >= (2, 4):  # 3.6 converts one-element arrays to numbers
            needs.append(
                f"needs numpy < 2.4 to interpret with triton 3.6, got {installed('numpy')}"
            )
    elif problem.target.sm < OLDEST_SM:
        need = f"an NVIDIA GPU of sm_{OLDEST_SM} or later, nvfp4.emulate or TRITON_INTERPRET=1"
        needs.append(f"needs {need}, got {problem.target}")
    elif triton and triton < (since := ASSEMBLED_SINCE.get(problem.target.sm, ())):
        need = f"triton >= {since[0]}.{since[1]} on {problem.target}"
        needs.append(f"needs {need}, got {installed('triton')}")
    if problem.op == "linear" and multiplies_nvfp4(problem.target.sm):
        needs.append(f"needs a GPU whose GEMM takes decoded operands, got {problem.target}")
    return needs


def _only_by_name(problem: Problem) -> str:
    if problem.target.emulated:
        return emulated_slowly(problem.target.sm)
    return "Triton's interpreter checks kernels, slowly" if interpreting() else ""


def _compile_ahead(workloads: Iterable[Workload], arch: str, workers: int) -> Compilation:
    if interpreting():
        return Compilation(0, iter(()))
    from nvfp4.backends.triton.warmup import compile_all, launches_for

    works, sm = list(workloads), sm_of(arch)
    launches = launches_for(works, sm)
    return Compilation(len(launches), compile_all(launches, works, sm, workers))


BACKEND = Backend(
    name="triton",
    ops=(
        "quantize",
        "quantize_dynamic",
        "dequantize",
        "glu_quantize",
        "rmsnorm_quantize",
        "mm",
        "weight_only_linear",
        "linear",
        "grouped_mm",
        "weight_only_moe",
        "moe_dispatch",
        "moe_combine",
    ),
    needs=_needs,
    only_by_name=_only_by_name,
    compile_ahead=_compile_ahead,
    replays=True,
)
