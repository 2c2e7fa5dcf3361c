"""A mixture of experts' layers at real models' sizes: how near to bf16, and how long each stage.

Each NVFP4 output is compared with bf16 twice: with the same weights, the NVFP4 ones dequantized,
which is what an NVFP4 checkpoint's bf16 reference is and leaves the cost of quantizing activations;
and with the weights before they were quantized.
"""

import platform
import time
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from statistics import median
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from nvfp4.demo import bf16, measure
from nvfp4.demo.measure import cosine
from nvfp4.demo.model import TEXT, default_weights, load
from nvfp4.demo.stages import StageTime, stage_times
from nvfp4.demo.synthetic import DISTRIBUTIONS, Distribution, Source
from nvfp4.dispatch.explain import explain
from nvfp4.layers import Linear, MoE, SwiGLUMLP
from nvfp4.ops.quantize import quantize_weight
from nvfp4.spec.quantize import global_scale
from nvfp4.tensors import concatenate

DYNAMIC = "dynamic"
STATIC_H = "static h"
"""A calibrated scale of act(gate) * up per expert, from as many tokens again."""

REAL = "real model"
"""Its own weights, and activations on the demo's text."""

Step = Callable[[str, int], measure.Progress]


@dataclass(frozen=True)
class Plan:
    """What is measured. moe, shared: (hidden, intermediate); linear: (N, K).

    experts: those held here, of so many that the router chooses top_k from. tokens: of the
    accuracy; timed: of the times; real: the most tokens that the real model reads.
    """

    moe: tuple[tuple[int, int], ...] = ((7168, 2048), (4096, 2048), (4096, 3072))
    shared: tuple[tuple[int, int], ...] = ((7168, 2048),)
    linear: tuple[tuple[int, int], ...] = ((6144, 3584), (9216, 3584), (7168, 2048))
    experts: int = 32
    experts_of: int = 256
    top_k: int = 8
    tokens: int = 512
    timed: tuple[int, ...] = (16, 256, 4096)
    rounds: int = 15
    real: int = 512
    seed: int = 0


ON_GPU = Plan()
ON_CPU = Plan(experts=8, experts_of=16, top_k=8, tokens=32, timed=(32,), rounds=3, real=256)
"""The sizes are the real ones; fewer experts and tokens, for two cores and two minutes."""


class Accuracy(NamedTuple):
    """Cosine similarity of an NVFP4 layer's output with bf16's."""

    layer: str
    data: str
    scales: str
    same_weights: float
    original_weights: float


@dataclass(frozen=True)
class Report:
    """Everything here was measured in this run."""

    device: str
    torch: str
    plan: Plan
    distributions: tuple[Distribution, ...]
    real_model: str
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
    """Run the demo; `weights`: the real model, default SmolLM2 where it is installed."""
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
            found, layer = _moe(name, hidden, intermediate, plan, source, backend)
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
            rows += _shared(*size, plan, source, backend)
        done()
    for size in plan.linear:
        rows += [_projection(*size, plan, source, backend) for source in sources]
        done()
    model, found = _real(weights, plan, device, backend, step)
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


def _moe(
    name: str, hidden: int, intermediate: int, plan: Plan, source: Source, backend: str
) -> tuple[list[Accuracy], MoE]:
    """The rows, and the layer with a static scale between its GEMMs."""
    experts, data = plan.experts, source.distribution.name
    gate, up = (source.weights(experts, intermediate, hidden) for _ in range(2))
    down = source.weights(experts, hidden, intermediate)
    gains = source.gains(hidden)
    x, calibration = (source.activations(plan.tokens, gains) for _ in range(2))
    routing = source.routing(plan.tokens, plan.experts_of, plan.top_k)

    dynamic = MoE.from_float(gate, up, down, backend=backend)
    w13, w2 = dynamic.packed()

    def packed(e: int) -> tuple[Tensor, Tensor]:
        return w13[e].dequantize(), w2[e].dequantize()

    def original(e: int) -> tuple[Tensor, Tensor]:
        return torch.cat([gate[e], up[e]]), down[e]

    same, before = (bf16.moe(x, *routing, expert, experts) for expert in (packed, original))
    h = [global_scale(bf16.hidden(calibration, w13[e].dequantize())) for e in range(experts)]
    static = MoE(w13, w2, h_global_scale=torch.stack(h), backend=backend)
    outputs = {DYNAMIC: dynamic(x, *routing), STATIC_H: static(x, *routing)}
    return [
        Accuracy(name, data, scales, cosine(out, same), cosine(out, before))
        for scales, out in outputs.items()
    ], static


def _shared(
    hidden: int, intermediate: int, plan: Plan, source: Source, backend: str
) -> Iterator[Accuracy]:
    parts = [
        source.weight(*n_k) for n_k in ((intermediate, hidden),) * 2 + ((hidden, intermediate),)
    ]
    gains = source.gains(hidden)
    x, calibration = (source.activations(plan.tokens, gains) for _ in range(2))
    gate, up, w2 = (quantize_weight(w, backend=backend) for w in parts)
    w13 = concatenate([gate, up])
    packed = w13.dequantize(), w2.dequantize()
    same, before = bf16.mlp(x, *packed), bf16.mlp(x, torch.cat(parts[:2]), parts[2])
    h = global_scale(bf16.hidden(calibration, packed[0]))
    for scales, known in ((DYNAMIC, None), (STATIC_H, h)):
        out = SwiGLUMLP(w13, w2, h_global_scale=known, backend=backend)(x)
        name = f"shared expert {hidden}/{intermediate}"
        data = source.distribution.name
        yield Accuracy(name, data, scales, cosine(out, same), cosine(out, before))


def _projection(n: int, k: int, plan: Plan, source: Source, backend: str) -> Accuracy:
    w, x = source.weight(n, k), source.activations(plan.tokens, source.gains(k))
    layer = Linear(quantize_weight(w, backend=backend), backend=backend)
    out, same = layer(x), F.linear(x, layer.packed().dequantize())
    data = source.distribution.name
    return Accuracy(
        f"linear {n}x{k}", data, DYNAMIC, cosine(out, same), cosine(out, F.linear(x, w))
    )


def _real(
    weights: Path | None, plan: Plan, device: str, backend: str, step: Step
) -> tuple[str, list[Accuracy]]:
    """The projections and the MLPs of a real model on its own activations: its name, or why it was
    not measured; median and worst of each.
    """
    try:
        path = weights or default_weights()
        model, tokenizer, name = load(path, device)
    except ValueError as error:
        if weights is not None:
            raise
        return f"not measured: {error}", []
    tokens = tokenizer(TEXT.read_text(), return_tensors="pt")["input_ids"][:, : plan.real]
    tokens = tokens.to(device)
    linears, mlps = (len(list(each(model))) for each in (measure.block_linears, measure.block_mlps))
    packed = measure.quantize_linears(model, backend, step("quantize a real model", linears))
    done = step("compare its projections", linears)
    found = {"projections": measure.projection_cosines(model, packed.layers, tokens, done)}
    found["MLPs"] = measure.mlp_cosines(model, tokens, backend, step("compare its MLPs", mlps))
    return name, [
        Accuracy(
            f"{len(found[what])} {what}, {word}",
            REAL,
            DYNAMIC,
            choose(p.same_weights for p in found[what]),
            choose(p.cosine for p in found[what]),
        )
        for what in ("projections", "MLPs")
        for word, choose in (("median", median), ("worst", min))
        if found[what]
    ]
