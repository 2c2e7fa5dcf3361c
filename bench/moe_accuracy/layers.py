"""The accuracy of single layers on random data: a mixture, a shared expert, a projection."""

from collections.abc import Iterator

import torch
import torch.nn.functional as F
from torch import Tensor

from nvfp4.bench.moe_accuracy import bf16
from nvfp4.bench.moe_accuracy.plan import BEST_SCALES, DYNAMIC, STATIC_H, Accuracy, Plan
from nvfp4.bench.moe_accuracy.synthetic import Source
from nvfp4.demo.measure import cosine
from nvfp4.layers import Linear, MoE, SwiGLUMLP
from nvfp4.ops.quantize import quantize_weight
from nvfp4.quantization.mse import best_scales
from nvfp4.spec.format import BLOCK
from nvfp4.spec.quantize import global_scale, rounded, row_global_scales
from nvfp4.spec.scale_rules import FOUR_OVER_SIX
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

    dynamic = MoE.from_float(gate, up, down, scale_rule=plan.scale_rule, backend=backend)
    w13, w2 = dynamic.packed()

    def packed(e: int) -> tuple[Tensor, Tensor]:
        return w13[e].dequantize(), w2[e].dequantize()

    def original(e: int) -> tuple[Tensor, Tensor]:
        return torch.cat([gate[e], up[e]]), down[e]

    same, before = (bf16.moe(x, *routing, expert, experts) for expert in (packed, original))
    rule = plan.scale_rule
    h = [global_scale(bf16.hidden(calibration, w13[e].dequantize()), rule) for e in range(experts)]
    static = MoE(w13, w2, h_global_scale=torch.stack(h), scale_rule=rule, backend=backend)
    outputs = {
        DYNAMIC: dynamic(x, *routing),
        STATIC_H: static(x, *routing),
        BEST_SCALES: bf16.moe(x, *routing, packed, experts, best_rounded),
    }
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
    h, rule = global_scale(bf16.hidden(calibration, packed[0]), plan.scale_rule), plan.scale_rule
    name, data = f"shared expert {hidden}/{intermediate}", source.distribution.name
    for scales, known in ((DYNAMIC, None), (STATIC_H, h)):
        out = SwiGLUMLP(w13, w2, h_global_scale=known, scale_rule=rule, backend=backend)(x)
        yield Accuracy(name, data, scales, cosine(out, same), cosine(out, before))
    out = bf16.mlp(x, *packed, best_rounded)
    yield Accuracy(name, data, BEST_SCALES, cosine(out, same), cosine(out, before))


def projection_accuracy(
    n: int, k: int, plan: Plan, source: Source, backend: str
) -> Iterator[Accuracy]:
    w, x = source.weight(n, k), source.activations(plan.tokens, source.gains(k))
    weight = quantize_weight(w, backend=backend)
    layer = Linear(weight, scale_rule=plan.scale_rule, backend=backend)
    packed = layer.packed().dequantize()
    same, before = F.linear(x, packed), F.linear(x, w)
    name, data = f"linear {n}x{k}", source.distribution.name
    for scales, out in ((DYNAMIC, layer(x)), (BEST_SCALES, F.linear(best_rounded(x), packed))):
        yield Accuracy(name, data, scales, cosine(out, same), cosine(out, before))


def best_rounded(x: Tensor) -> Tensor:
    """Round x [M, K] to NVFP4, each block by the E4M3 scale with the least squared error."""
    p = row_global_scales(x, FOUR_OVER_SIX).view(-1, 1)
    floats = x.float()
    return rounded(floats, best_scales(floats.view(x.shape[0], -1, BLOCK), p), p).to(x.dtype)
