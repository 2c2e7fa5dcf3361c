"""The benchmark of engines: its checkpoints load, and a decode step is found in a trace."""

import json

import pytest
import torch

from nvfp4.bench.engine import measure, models, timeline
from nvfp4.checkpoints import load_model
from nvfp4.spec.format import W4A4, W4A16


def _event(name, begin, duration, category, correlation):
    args = {"correlation": correlation}
    return {"ph": "X", "name": name, "ts": begin, "dur": duration, "cat": category, "args": args}


def test_a_step_is_from_one_graph_launch_to_the_next(tmp_path):
    events = []
    for step in range(9):
        begin = 100.0 * step
        events += [
            _event("cudaGraphLaunch", begin - 20, 5, "cuda_runtime", step),
            _event("gemm", begin, 30, "kernel", step),
            _event("norm", begin + 20, 20, "kernel", step),  # 10 us beside the GEMM
            _event("Memcpy DtoH", begin + 60, 10, "gpu_memcpy", 1000 + step),
        ]
    (tmp_path / "trace.json").write_text(json.dumps({"traceEvents": events}))
    found = timeline.steps_of(tmp_path / "trace.json")
    assert (found["step us"], found["idle us"]) == (100, 50)
    assert found["one step"] == "0.00+30.00 20.00+20.00 60.00+10.00"
    assert found["kernels"]["gemm"] == {"count": 1, "us": 30}


@pytest.mark.parametrize("experts", [0, 4])
def test_its_checkpoints_load_in_both_formats(tmp_path, experts):
    name = "qwen3-30b-a3b" if experts else "llama-3.1-8b"
    small = models.MODELS[name]._replace(
        hidden=64, intermediate=32, heads=2, kv_heads=1, layers=1, vocabulary=64, head_dim=32
    )
    models.write(small._replace(experts=experts, top_k=experts and 2), tmp_path / "m")
    for folder, activation in ((models.W4A4, W4A4), (models.W4A16, W4A16)):
        model = load_model(tmp_path / "m" / folder)
        assert model.model.layers[0].self_attn.q_proj.activation == activation
        assert model(torch.tensor([[1, 2, 3]])).logits.isfinite().all()


def test_the_table_compares_with_the_better_peer():
    speeds = {"nvfp4 W4A4": 300.0, "Marlin": 200.0, "humming": 150.0, "bf16": 100.0}
    found = {"tokens a second": {n: dict.fromkeys(measure.KEYS, [s]) for n, s in speeds.items()}}
    table = measure.table(found)
    assert "geometric mean of decoding | 1.50 " in table
