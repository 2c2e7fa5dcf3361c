"""CuTe DSL kernels for Blackwell's block-scaled tensor cores (tcgen05.mma, sm_100 and sm_103)."""

from importlib.util import find_spec

from nvfp4.backends.contract import Backend, Problem

ARCHITECTURES = (100, 103)
"""tcgen05.mma.kind::mxf4nvf4 exists here; sm_120 has mma.sync's form of it and runs Triton."""


def _needs(problem: Problem) -> list[str]:
    needs = []
    if problem.target.sm not in ARCHITECTURES:
        needs.append(f"needs sm_100 or sm_103, got {problem.target}")
    if find_spec("cutlass") is None:
        needs.append("needs the package nvidia-cutlass-dsl, got none")
    return needs


BACKEND = Backend(name="cutedsl", ops=(), needs=_needs, only_by_name=lambda problem: "")
