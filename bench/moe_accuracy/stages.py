"""The times of a mixture of experts: each stage of torch.ops.nvfp4.moe, and the whole.

They are for orientation, because data may still be in a GPU's cache from the last call. `nvfp4
bench` measures with a cold cache.
"""

import time
from collections.abc import Callable
from statistics import median
from typing import NamedTuple

import torch
from torch import Tensor

from nvfp4.dispatch.explain import explain
from nvfp4.layers import MoE
from nvfp4.ops.glu_quantize import grouped_glu_quantize
from nvfp4.ops.grouped_mm import grouped_mm
from nvfp4.ops.grouped_mm_glu_quantize import grouped_mm_glu_quantize
from nvfp4.ops.moe_combine import moe_combine
from nvfp4.ops.moe_dispatch import moe_dispatch
from nvfp4.tensors import ExpertRows

CALLS = 5
"""The number of calls in a CUDA graph that is timed."""


class StageTime(NamedTuple):
    """The median time of a stage in microseconds, and the backend that ran it."""

    case: str
    tokens: int
    stage: str
    backend: str
    microseconds: float


def stage_times(
    case: str, layer: MoE, inputs: tuple[Tensor, Tensor, Tensor], rounds: int
) -> list[StageTime]:
    """Time each stage of layer(*inputs), then the fused first GEMM, then the whole."""
    x, topk_weights, topk_ids = inputs
    w13, w2 = layer.packed()
    known, glu = layer.h_global_scale, (layer.scale_rule, layer.activation)
    ran = {stage.op: stage.backend for stage in explain("moe", x, layer.backend).stages}
    mm = ran["grouped_mm"]

    def dispatch() -> tuple[ExpertRows, Tensor]:
        return moe_dispatch(
            x,
            topk_ids,
            layer.experts,
            layer.x_global_scale,
            layer.expert_offset,
            backend=ran["moe_dispatch"],
        )

    rows, positions = dispatch()
    gate_up = grouped_mm(rows, w13, None, x.dtype, mm)

    def activate() -> ExpertRows:
        given = gate_up, rows.offsets, known, layer.swiglu_limit
        return grouped_glu_quantize(*given, *glu, ran["glu_quantize"])

    h = activate()
    y = grouped_mm(h, w2, None, x.dtype, mm)
    one_op = "grouped_mm_glu_quantize"
    stages: tuple[tuple[str, str, Callable[[], object]], ...] = (
        ("moe_dispatch", ran["moe_dispatch"], dispatch),
        ("grouped_mm w13", mm, lambda: grouped_mm(rows, w13, None, x.dtype, mm)),
        ("glu_quantize", ran["glu_quantize"], activate),
        ("grouped_mm w2", mm, lambda: grouped_mm(h, w2, None, x.dtype, mm)),
        (
            "moe_combine",
            ran["moe_combine"],
            lambda: moe_combine(y, topk_weights, positions, None, ran["moe_combine"]),
        ),
        (
            one_op,
            explain(one_op, x, layer.backend).backend,
            lambda: grouped_mm_glu_quantize(
                *(rows, w13, None, known, layer.swiglu_limit, x.dtype),
                *glu,
                layer.backend,
            ),
        ),
        ("moe", " + ".join(dict.fromkeys(ran.values())), lambda: layer(*inputs)),
    )
    return [
        StageTime(case, x.shape[0], stage, backend, _microseconds(call, x.device, rounds))
        for stage, backend, call in stages
    ]


def _microseconds(call: Callable[[], object], device: torch.device, rounds: int) -> float:
    if device.type == "cuda":
        return _replayed(call, rounds) * 1e6
    return median(_wall_time(call) for _ in range(rounds)) * 1e6


def _wall_time(call: Callable[[], object]) -> float:
    begin = time.perf_counter()
    call()
    return time.perf_counter() - begin


def _replayed(call: Callable[[], object], rounds: int) -> float:
    """Time one of several calls in a CUDA graph, in seconds, without the host's time."""
    call()  # this may compile
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        for _ in range(CALLS):
            call()
    begin, end = torch.cuda.Event(enable_timing=True), torch.cuda.Event(enable_timing=True)
    times = []
    for _ in range(rounds):
        begin.record()
        graph.replay()
        end.record()
        end.synchronize()
        times.append(begin.elapsed_time(end) * 1e-3 / CALLS)
    return median(times)
