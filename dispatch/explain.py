"""Why a backend runs an op: the question answered before, or without, running it."""

from typing import NamedTuple

import torch
from torch import Tensor

from nvfp4.backends.problem import Problem
from nvfp4.backends.target import Target, target_of
from nvfp4.dispatch.select import Verdict, choose, requested, verdicts

STAGES = {
    "quantize": ("quantize",),
    "quantize_dynamic": ("quantize_dynamic",),
    "dequantize": ("dequantize",),
    "glu_quantize": ("glu_quantize",),
    "silu_mul_quantize": ("glu_quantize",),
    "rmsnorm_quantize": ("rmsnorm_quantize",),
    "mm": ("mm",),
    "linear": ("quantize_dynamic", "mm"),
    "weight_only_linear": ("weight_only_linear",),
    "swiglu_mlp": ("quantize_dynamic", "mm", "glu_quantize"),
    "grouped_mm": ("grouped_mm",),
    "grouped_mm_glu_quantize": ("grouped_mm", "glu_quantize"),
    "moe_dispatch": ("moe_dispatch",),
    "moe_combine": ("moe_combine",),
    "weight_only_moe": ("weight_only_moe",),
    "moe": ("moe_dispatch", "grouped_mm", "glu_quantize", "moe_combine"),
}
"""What each op asks the dispatch for, called without static scales. "weight_only_linear" and
"weight_only_moe" are the W4A16 modes of linear and moe.
"""


class Stage(NamedTuple):
    """One choice: the backend ("" if none can run it) and what every backend said, in order of
    preference.
    """

    op: str
    backend: str
    verdicts: tuple[Verdict, ...]


class Explanation(NamedTuple):
    """The backends that run an op on a target, and why; str() of it is a report."""

    op: str
    target: Target
    requested: str
    stages: tuple[Stage, ...]

    @property
    def backend(self) -> str:
        """The backends of the stages, each named once."""
        return " + ".join(dict.fromkeys(stage.backend or "none" for stage in self.stages))

    def __str__(self) -> str:
        asked = f", backend {self.requested!r} asked for" if self.requested else ""
        lines = [f"nvfp4::{self.op} on {self.target}{asked}: {self.backend}"]
        for stage in self.stages:
            lines += [f"  {stage.op} -> {stage.backend or 'none'}"]
            lines += [f"    {v.backend}: {v}" for v in stage.verdicts]
        return "\n".join(lines)


def explain(
    op: str, where: Tensor | torch.device | str | None = None, backend: str = ""
) -> Explanation:
    """Which backend would run nvfp4::op, and what every backend says to it.

    Args:
        op: an op's name, e.g. "mm".
        where: a tensor or a device; default the current GPU if there is one, else the CPU.
        backend: as the op's own argument.
    """
    if op not in STAGES:
        raise ValueError(f"nvfp4.explain: op needs one of {', '.join(STAGES)}, got {op!r}")
    if where is None:
        where = "cuda" if torch.cuda.is_available() else "cpu"
    target = target_of(where.device if isinstance(where, Tensor) else torch.device(where))
    name = requested(backend)
    strict = bool(backend) and len(STAGES[op]) == 1
    stages = []
    for stage in STAGES[op]:
        problem = Problem(stage, target)
        try:
            chosen = choose(problem, name, strict).name
        except ValueError:
            chosen = ""
        stages.append(Stage(stage, chosen, verdicts(problem)))
    return Explanation(op, target, name, tuple(stages))
