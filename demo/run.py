"""The demo from end to end: load, quantize, measure, report."""

import copy
import platform
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from statistics import median
from typing import Any

import torch

from nvfp4.backends.target import target_of
from nvfp4.demo import measure
from nvfp4.demo.model import TEXT, default_weights, load
from nvfp4.dispatch.explain import explain

PROMPT = "Once upon a time, in a small village by the sea, there lived"


@dataclass(frozen=True)
class Report:
    """The findings of one run, with what it ran on."""

    model: str
    device: str
    torch: str
    backends: dict[str, str]
    why: str
    layers: int
    tokens: int
    cosine_worst: float
    cosine_worst_projection: str
    cosine_median: float
    perplexity_bf16: float
    perplexity_nvfp4: float
    linear_bytes_bf16: int
    linear_bytes_nvfp4: int
    prompt: str
    continuation_bf16: str
    continuation_nvfp4: str
    seconds: float

    def as_dict(self) -> dict[str, Any]:
        return asdict(self)


def _name(device: str) -> str:
    if device == "cuda":
        return torch.cuda.get_device_name()
    target = target_of(torch.device(device))
    return f"{platform.machine()} CPU" + (f", {target}" if target.emulated else "")


def run(
    weights: Path | None,
    text: Path | None,
    max_tokens: int,
    new_tokens: int,
    backend: str,
    step: Callable[[str, int], measure.Progress],
) -> Report:
    """Run the demo.

    `step(title, total)` opens a progress bar and returns the function that advances it.
    """
    start = time.perf_counter()
    emulated = target_of(torch.device("cpu")).emulated
    device = "cuda" if torch.cuda.is_available() and not emulated else "cpu"
    explanation = explain("linear", device, backend)
    path = weights or default_weights()

    done = step(f"load {path.name}", 1)
    model, tokenizer, source = load(path, device)
    done()
    layers = sum(1 for _ in measure.block_linears(model))
    text_path = text or TEXT
    tokens = tokenizer(text_path.read_text(), return_tensors="pt")["input_ids"][:, :max_tokens].to(
        device
    )
    if tokens.shape[1] < 2:
        raise ValueError(
            f"nvfp4 demo: --text needs at least 2 tokens, got {tokens.shape[1]} in {text_path}"
        )

    quantized = copy.deepcopy(model)
    packed = measure.quantize_linears(model, backend, step("quantize the linear layers", layers))
    measure.replace_linears(quantized, packed.layers)
    projections = measure.projection_cosines(
        model, packed.layers, tokens[:, :512], step("compare the projections", layers)
    )
    done = step("perplexity, bf16 and NVFP4", 2)
    perplexities = []
    for each in (model, quantized):
        perplexities.append(measure.perplexity(each, tokens))
        done()
    done = step("write, bf16 and NVFP4", 2)
    written = []
    for each in (model, quantized):
        written.append(measure.continuation(each, tokenizer, PROMPT, new_tokens))
        done()

    worst = min(projections, key=lambda projection: projection.cosine)
    return Report(
        model=source,
        device=_name(device),
        torch=torch.__version__,
        backends={stage.op: stage.backend for stage in explanation.stages},
        why=str(explanation),
        layers=layers,
        tokens=tokens.shape[1],
        cosine_worst=worst.cosine,
        cosine_worst_projection=worst.name,
        cosine_median=median(projection.cosine for projection in projections),
        perplexity_bf16=perplexities[0],
        perplexity_nvfp4=perplexities[1],
        linear_bytes_bf16=packed.before,
        linear_bytes_nvfp4=packed.after,
        prompt=PROMPT,
        continuation_bf16=written[0],
        continuation_nvfp4=written[1],
        seconds=time.perf_counter() - start,
    )
