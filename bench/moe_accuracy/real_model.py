"""The projections and the gated MLPs of a real model, on its own activations."""

from collections.abc import Callable, Iterator
from pathlib import Path
from statistics import median
from typing import Any

import torch
from torch import Tensor, nn

from nvfp4.bench.moe_accuracy import bf16
from nvfp4.bench.moe_accuracy.plan import DYNAMIC, REAL, Accuracy, Plan, Step
from nvfp4.demo import measure
from nvfp4.demo.measure import Progress, Projection, cosine
from nvfp4.demo.model import TEXT, default_weights, load
from nvfp4.layers import SwiGLUMLP


def real_model_accuracy(
    weights: Path | None, plan: Plan, device: str, backend: str, step: Step
) -> tuple[str, list[Accuracy]]:
    """Measure each projection and each MLP of a real model; return its name, and median and worst.

    Where no model is named and the default one is not installed, the name says why it was not
    measured, and there are no rows.
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
    linears, mlps = (len(list(each(model))) for each in (measure.block_linears, block_mlps))
    packed = measure.quantize_linears(model, backend, step("quantize a real model", linears))
    for layer in packed.layers.values():
        layer.scale_rule = plan.scale_rule
    done = step("compare its projections", linears)
    found = {"projections": measure.projection_cosines(model, packed.layers, tokens, done)}
    found["MLPs"] = mlp_cosines(
        model, tokens, plan.scale_rule, backend, step("compare its MLPs", mlps)
    )
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


def block_mlps(model: Any) -> Iterator[tuple[str, Any]]:
    """Yield each block's gated MLP without biases, by name."""
    for name, module in model.model.layers.named_modules():
        parts = [getattr(module, f"{part}_proj", None) for part in ("gate", "up", "down")]
        if all(isinstance(part, nn.Linear) and part.bias is None for part in parts):
            yield name, module


@torch.inference_mode()
def mlp_cosines(
    model: Any, tokens: Tensor, rule: str, backend: str, done: Progress
) -> list[Projection]:
    """Compare each block's gated MLP, as one SwiGLUMLP, with bf16 on the model's activations."""

    def compare(name: str, mlp: Any) -> Callable[[Tensor, Tensor], Projection]:
        parts = mlp.gate_proj, mlp.up_proj, mlp.down_proj
        layer = SwiGLUMLP.from_float(*parts, scale_rule=rule, backend=backend)

        def of(x: Tensor, want: Tensor) -> Projection:
            got = layer(x)
            w13, w2 = (w.dequantize(x.dtype) for w in layer.packed())
            same = bf16.mlp(x, w13, w2)
            return Projection(name, cosine(got, want), cosine(got, same))

        return of

    return measure.on_activations(
        model, tokens, [(mlp, compare(name, mlp)) for name, mlp in block_mlps(model)], done
    )
