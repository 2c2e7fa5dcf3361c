"""CuTe DSL kernels for Blackwell's block-scaled tensor cores (tcgen05.mma, sm_100 and sm_103).

Elsewhere, on CPU tensors and if asked for by name, the same compiled code runs in an emulator.
"""

from collections.abc import Iterable
from importlib.util import find_spec

from nvfp4.backends.backend import Backend, Compilation
from nvfp4.backends.emulation import emulated_slowly, emulator_needs
from nvfp4.backends.problem import Problem
from nvfp4.backends.target import Target
from nvfp4.backends.workload import Workload
from nvfp4.spec.glu import GELU_TANH, SILU
from nvfp4.spec.swizzle import TILE_ROWS

ARCHITECTURES = (100, 103)
"""tcgen05.mma.kind::mxf4nvf4 exists here; sm_120 has mma.sync's form of it and runs Triton."""

DEFAULT_SM = 100
"""The architecture that a CPU emulates without nvfp4.emulate."""

PACKAGES = {"cutlass": "nvidia-cutlass-dsl", "tvm_ffi": "apache-tvm-ffi"}


def _emulates(problem: Problem) -> bool:
    return problem.target.device == "cpu"


def _needs(problem: Problem) -> list[str]:
    needs = []
    if _emulates(problem):
        needs += emulator_needs(problem.target.sm or DEFAULT_SM)
    if problem.target != Target("cpu") and problem.target.sm not in ARCHITECTURES:
        needs.append(f"needs sm_100 or sm_103, or the CPU to emulate it, got {problem.target}")
    for module, package in PACKAGES.items():
        if find_spec(module) is None:
            needs.append(f"needs the package {package}, got none")
    if problem.op == "grouped_mm_glu_quantize":
        needs += fused_needs(problem.intermediate, problem.activation, problem.bias)
    return needs


FUSED_ACTIVATIONS = (SILU, GELU_TANH)
"""What the epilogue computes before it quantizes."""


def fused_needs(intermediate: int, activation: str = "", bias: bool = False) -> list[str]:
    """What stands in the way of an activation in the epilogue; "" is any that it has."""
    needs = []
    if intermediate % TILE_ROWS:
        need = f"needs an intermediate size that is a multiple of {TILE_ROWS}"
        needs.append(f"{need}, got {intermediate}")
    if activation not in ("", *FUSED_ACTIVATIONS):
        needs.append(f"needs one of {', '.join(FUSED_ACTIVATIONS)} to fuse, got {activation}")
    if bias:
        needs.append("needs a first layer without a bias to fuse, got one")
    return needs


def _only_by_name(problem: Problem) -> str:
    return emulated_slowly(problem.target.sm or DEFAULT_SM) if _emulates(problem) else ""


def _compile_ahead(workloads: Iterable[Workload], arch: str, workers: int) -> Compilation:
    from nvfp4.backends.cutedsl.runtime.warmup import compile_all, kernels_for

    kernels = dict.fromkeys(kernel for w in workloads for kernel in kernels_for(w))
    return Compilation(len(kernels), compile_all(kernels, arch, workers))


def _describe(m: int, n: int, k: int) -> str:
    from nvfp4.backends.cutedsl.gemm.choose import choose_config
    from nvfp4.backends.environment import may_split_k

    return f"on a B200, {choose_config(m, n, k, splits=may_split_k())}"


BACKEND = Backend(
    name="cutedsl",
    ops=("mm", "grouped_mm", "grouped_mm_glu_quantize"),
    needs=_needs,
    only_by_name=_only_by_name,
    compile_ahead=_compile_ahead,
    describe=_describe,
    replays=True,
)
