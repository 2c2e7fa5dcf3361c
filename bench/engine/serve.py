"""One engine in a process of its own: it starts, then answers each line of its input."""

import json
import math
import os
import sys
import time
from pathlib import Path
from typing import Any, NamedTuple

import torch

from nvfp4.bench.engine.models import FLOATS, W4A4, W4A16

SEQUENCES = (1, 4, 16, 64, 128, 256)
PROMPT, WRITTEN, PREFILL = 32, 128, (8, 1024)
"""Tokens of a prompt and written after it; prompts and their tokens where none is written."""

OURS, OURS_W4A16 = "nvfp4 W4A4", "nvfp4 W4A16"
PEERS = ("Marlin", "humming")


class Engine(NamedTuple):
    """One competitor: its checkpoint, its quantization method, and its kernels in vLLM."""

    checkpoint: str
    quantization: str | None = None
    kernels: str = "auto"


ENGINES = {
    "bf16": Engine(FLOATS),
    OURS: Engine(W4A4, "nvfp4"),
    OURS_W4A16: Engine(W4A16, "nvfp4"),
    "Marlin": Engine(W4A4, "modelopt_fp4", "marlin"),
    "humming": Engine(W4A4, "modelopt_fp4", "humming"),
}


def serve(name: str, folder: Path, tensor_parallel: int, traces: Path | None) -> None:
    """Print the seconds that the engine took to start, then answer each line.

    A line is a number of sequences or "prefill" (answer: tokens a second), "repeat" (whether the
    same prompts give the same tokens twice), "batch" (how many of 16 prompts give the same tokens
    alone as together), "trace" (write a trace to `traces`), or "end".
    """
    answers = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)  # what vLLM prints goes to the log
    begin = time.perf_counter()
    runner = Runner(_llm(ENGINES[name], folder, tensor_parallel, traces))
    print(time.perf_counter() - begin, file=answers, flush=True)
    for line in map(str.strip, sys.stdin):
        print(json.dumps(runner.answer(line)), file=answers, flush=True)
        if line == "end":
            break


def _llm(engine: Engine, folder: Path, tensor_parallel: int, traces: Path | None) -> Any:
    from vllm import LLM

    options: dict[str, Any] = {}
    config = json.loads((folder / engine.checkpoint / "config.json").read_text())
    experts = "num_experts" in config
    if experts and tensor_parallel > 1:
        options["enable_expert_parallel"] = True
    if engine.kernels != "auto":
        options["linear_backend"] = engine.kernels
        if experts:
            options["moe_backend"] = engine.kernels
    if traces is not None:
        options["profiler_config"] = {
            "profiler": "torch",
            "torch_profiler_dir": str(traces.resolve()),
            "torch_profiler_with_stack": False,
            "ignore_frontend": True,
        }
    return LLM(
        str(folder / engine.checkpoint),
        quantization=engine.quantization,
        tensor_parallel_size=tensor_parallel,
        dtype="bfloat16",
        max_model_len=2048,
        max_num_seqs=max(SEQUENCES),
        kv_cache_memory_bytes=8 << 30,
        gpu_memory_utilization=0.2,
        enable_prefix_caching=False,
        skip_tokenizer_init=True,
        disable_log_stats=True,
        seed=0,
        compilation_config={"cudagraph_capture_sizes": [1, 2, 4, 8, 16, 32, 64, 128, 256]},
        **options,
    )


class Runner:
    """Asks an engine for tokens."""

    def __init__(self, llm: Any) -> None:
        self.llm = llm
        generator = torch.Generator().manual_seed(0)
        self.ids = torch.randint(3, 32000, (2048,), generator=generator)

    def answer(self, line: str) -> Any:
        if line == "end":
            return "ended"
        if line == "prefill":
            return math.prod(PREFILL) / self.seconds(*PREFILL, 1)
        if line == "repeat":
            return self.written(range(16)) == self.written(range(16))
        if line == "batch":
            together = self.written(range(16))
            return sum(self.written([i])[0] == together[i] for i in range(16))
        if line == "trace":
            self.written([0], 8)
            self.llm.start_profile()
            self.written([0], 32)
            self.llm.stop_profile()
            return "traced"
        count = int(line)
        return count * WRITTEN / self.seconds(count, PROMPT, WRITTEN)

    def seconds(self, prompts: int, tokens: int, written: int) -> float:
        begin = time.perf_counter()
        self.generate([self.ids[i : i + tokens].tolist() for i in range(prompts)], written)
        return time.perf_counter() - begin

    def written(self, prompts: Any, count: int = 64) -> list[list[int]]:
        """The tokens that follow prompts with these indices."""
        found = self.generate([self.ids[i : i + PROMPT].tolist() for i in prompts], count)
        return [list(one.outputs[0].token_ids) for one in found]

    def generate(self, prompts: list[list[int]], written: int) -> Any:
        from vllm import SamplingParams

        sampling = SamplingParams(
            temperature=0, detokenize=False, ignore_eos=True, max_tokens=written
        )
        asked = [{"prompt_token_ids": ids} for ids in prompts]
        return self.llm.generate(asked, sampling, use_tqdm=False)
