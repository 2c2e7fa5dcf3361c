"""The accuracy of single layers on random data: a mixture, a shared expert, a projection."""

from collections.abc import Iterator

import torch
import torch.nn.functional as F
from torch import Tensor

from nvfp4.bench.moe_accuracy import bf16
from nvfp4.bench.moe_accuracy.plan import DYNAMIC, STATIC_H, Accuracy, Plan
from nvfp4.bench.moe_accuracy.synthetic import Source
from nvfp4.demo.measure import cosine
from nvfp4.layers import Linear, MoE, SwiGLUMLP
from nvfp4.ops.quantize import quantize_weight
from nvfp4.spec.quantize import global_scale
from nvfp4.tensors import concatenate


def moe_accuracy(
    name: str, hidden: int, intermediate: int, plan: Plan, source: Source, backend: str
) -> tuple[list[Accuracy], MoE]:
    """Measure a mixture of experts; also return it, with a static scale between its GEMMs."""
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


def shared_expert_accuracy(
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


def projection_accuracy(n: int, k: int, plan: Plan, source: Source, backend: str) -> Accuracy:
    w, x = source.weight(n, k), source.activations(plan.tokens, source.gains(k))
    layer = Linear(quantize_weight(w, backend=backend), backend=backend)
    out, same = layer(x), F.linear(x, layer.packed().dequantize())
    data = source.distribution.name
    return Accuracy(
        f"linear {n}x{k}", data, DYNAMIC, cosine(out, same), cosine(out, F.linear(x, w))
    )
