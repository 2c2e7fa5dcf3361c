"""python -m nvfp4.bench.cold: how long a first call takes, and compiling ahead of it.

Each time is measured in a new process. A first and a second call of nvfp4::linear are timed with
empty and with filled caches on disk. `python -m nvfp4 warmup` is timed with one compiling process
and with one per CPU.
"""

import json
import os
import subprocess
import sys
import time
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Annotated, Any

import torch
import typer

from nvfp4.backends.target import target_of
from nvfp4.backends.triton.gemm.tuned import machine
from nvfp4.bench.run import commit_of

CALLS = """
import json, sys, time
import torch

def now():
    if torch.cuda.is_available():
        torch.cuda.synchronize()
    return time.perf_counter()

m, n, k = map(int, sys.argv[1:])
device = "cuda" if torch.cuda.is_available() else "cpu"
x = torch.randn(m, k, device=device, dtype=torch.bfloat16)
times = [now()]
import nvfp4
times.append(now())
w = nvfp4.quantize_weight(torch.randn(n, k, device=device, dtype=torch.bfloat16))
times.append(now())
for _ in range(2):
    torch.ops.nvfp4.linear(x, w.data, w.scales, w.global_scale)
    times.append(now())
steps = ("import nvfp4", "quantize_weight, first", "linear, first", "linear, second")
print(json.dumps(dict(zip(steps, (b - a for a, b in zip(times, times[1:]))))))
"""


def _environment(folder: str) -> dict[str, str]:
    caches = {"TRITON_CACHE_DIR": f"{folder}/triton", "NVFP4_CACHE_DIR": f"{folder}/nvfp4"}
    return {**os.environ, **caches}


def _python(arguments: list[str], folder: str) -> str:
    done = subprocess.run(
        [sys.executable, *arguments], env=_environment(folder), capture_output=True, text=True
    )
    if done.returncode:
        raise RuntimeError(f"python {' '.join(arguments[:3])}: {done.stderr[-2000:]}")
    return done.stdout


def measure(m: int, n: int, k: int, max_m: int) -> dict[str, dict[str, float]]:
    """Measure the seconds of each step, by what was done and by step."""
    found: dict[str, dict[str, float]] = {}
    with TemporaryDirectory() as folder:
        for caches in ("empty", "filled"):
            found[f"caches {caches}"] = json.loads(
                _python(["-c", CALLS, str(m), str(n), str(k)], folder)
            )
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    arch = f"sm_{target_of(device).sm or 90}"
    warmup = ["-m", "nvfp4", "warmup", "--shape", f"{n}x{k}", "--max-m", str(max_m), "--arch", arch]
    cpus = os.cpu_count() or 1
    found[f"warmup for {arch}, up to {max_m} tokens"] = seconds = {}
    for workers in (1, cpus):
        with TemporaryDirectory() as folder:
            begin = time.perf_counter()
            _python([*warmup, "--workers", str(workers)], folder)
            seconds[f"{workers} processes"] = time.perf_counter() - begin
    return found


def markdown(found: dict[str, dict[str, float]], about: dict[str, Any]) -> str:
    lines = ["| | step | seconds |", "| --- | --- | --- |"]
    for what, steps in found.items():
        lines += [f"| {what} | {step} | {seconds:.3f} |" for step, seconds in steps.items()]
    return "\n".join(lines) + "\n\n" + "".join(f"- {k}: {v}\n" for k, v in about.items())


def main(
    m: int = 16,
    n: int = 4096,
    k: int = 7168,
    max_m: int = 256,
    out: Annotated[Path | None, typer.Option(help="A file of JSON; a .md beside it.")] = None,
    commit: Annotated[str, typer.Option(help="What is measured; default: asked of git.")] = "",
) -> None:
    """Time the first calls of linear with a weight [N, K] and M tokens."""
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    about = machine(device) | {
        "commit": commit or commit_of(),
        "cpus": os.cpu_count(),
        "command": f"python -m nvfp4.bench.cold --m {m} --n {n} --k {k} --max-m {max_m}",
    }
    found = measure(m, n, k, max_m)
    text = markdown(found, about)
    if out is not None:
        out.parent.mkdir(parents=True, exist_ok=True)
        out.write_text(json.dumps(about | {"seconds": found}, indent=1) + "\n")
        out.with_suffix(".md").write_text(text)
    print(text)


if __name__ == "__main__":
    typer.run(main)
