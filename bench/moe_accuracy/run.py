"""Measure layers at real models' sizes: how near to bf16 they are, and a mixture's stage times."""

import platform
import time
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch

from nvfp4.bench.moe_accuracy.layers import (
    moe_accuracy,
    projection_accuracy,
    shared_expert_accuracy,
)
from nvfp4.bench.moe_accuracy.plan import ON_CPU, ON_GPU, Accuracy, Plan, Step
from nvfp4.bench.moe_accuracy.real_model import real_model_accuracy
from nvfp4.bench.moe_accuracy.stages import StageTime, stage_times
from nvfp4.bench.moe_accuracy.synthetic import DISTRIBUTIONS, Distribution, Source
from nvfp4.dispatch.explain import explain


@dataclass(frozen=True)
class Report:
    """The findings of one run, with what it ran on."""

    device: str
    torch: str
    plan: Plan
    distributions: tuple[Distribution, ...]
    real_model: str  # its name, or why it was not measured
    accuracy: tuple[Accuracy, ...]
    stages: tuple[StageTime, ...]
    backends: dict[str, str]
    why: str
    seconds: float

    def as_dict(self) -> dict[str, Any]:
        rows = {name: [row._asdict() for row in getattr(self, name)] for name in ROWS}
        return asdict(self) | rows


ROWS = ("accuracy", "stages")


def plan_here() -> Plan:
    return ON_GPU if torch.cuda.is_available() else ON_CPU


@torch.inference_mode()
def run(plan: Plan, weights: Path | None, backend: str, step: Step) -> Report:
    """Measure what the plan says, and a real model: `weights`, or SmolLM2 where it is installed."""
    start = time.perf_counter()
    device = "cuda" if torch.cuda.is_available() else "cpu"
    explanation = explain("moe", device, backend)

    rows: list[Accuracy] = []
    times: list[StageTime] = []
    sources = [Source(d, device, plan.seed) for d in DISTRIBUTIONS]
    for hidden, intermediate in plan.moe:
        name = f"moe {hidden}/{intermediate}"
        done = step(name, len(sources) + len(plan.timed))
        for source in sources:
            found, layer = moe_accuracy(name, hidden, intermediate, plan, source, backend)
            rows += found
            done()
        for tokens in plan.timed:
            x = source.activations(tokens, source.gains(hidden))
            routing = source.routing(tokens, plan.experts_of, plan.top_k)
            times += stage_times(name, layer, (x, *routing), plan.rounds)
            done()
        del layer
    done = step("shared expert, projections", len(plan.shared) + len(plan.linear))
    for size in plan.shared:
        for source in sources:
            rows += shared_expert_accuracy(*size, plan, source, backend)
        done()
    for size in plan.linear:
        for source in sources:
            rows += projection_accuracy(*size, plan, source, backend)
        done()
    model, found = real_model_accuracy(weights, plan, device, backend, step)
    return Report(
        device=_name(device),
        torch=torch.__version__,
        plan=plan,
        distributions=DISTRIBUTIONS,
        real_model=model,
        accuracy=(*rows, *found),
        stages=tuple(times),
        backends={stage.op: stage.backend for stage in explanation.stages},
        why=str(explanation),
        seconds=time.perf_counter() - start,
    )


def _name(device: str) -> str:
    if device == "cuda":
        return torch.cuda.get_device_name()
    return f"{platform.machine()} CPU, {torch.get_num_threads()} threads"
