"""python -m nvfp4 warmup: compile kernels ahead of the first call, with or without a GPU."""

import re
from typing import Annotated

import torch
import typer

from nvfp4.backends.contract import Workload
from nvfp4.cli.errors import user_errors
from nvfp4.cli.progress import steps
from nvfp4.dispatch import BACKENDS

DTYPES = {"bfloat16": torch.bfloat16, "float16": torch.float16, "float32": torch.float32}


def _shape(text: str) -> tuple[int, int]:
    match = re.fullmatch(r"(\d+)x(\d+)", text)
    if not match or int(match[2]) % 16 or not int(match[1]) or not int(match[2]):
        raise ValueError(f"--shape needs NxK, K a multiple of 16, such as 6144x3584, got {text!r}")
    return int(match[1]), int(match[2])


def _dtype(option: str, name: str) -> torch.dtype:
    if name not in DTYPES:
        raise ValueError(f"--{option} needs one of {', '.join(DTYPES)}, got {name!r}")
    return DTYPES[name]


def warmup(
    shape: Annotated[list[str], typer.Option(help="A weight's NxK; may be given again.")],
    max_m: Annotated[int, typer.Option(min=1, help="The most rows of activations.")] = 8192,
    dtype: Annotated[list[str], typer.Option(help="Of outputs; may be given again.")] = [  # noqa: B006
        "bfloat16"
    ],
    bias: Annotated[str, typer.Option(help="The biases' dtype; default: calls without.")] = "",
    arch: Annotated[str, typer.Option(help="What to compile for.")] = "sm_100a",
    workers: Annotated[int, typer.Option(min=0, help="Processes; 0: one per CPU.")] = 0,
) -> None:
    """Fill the cache of compiled kernels (NVFP4_CACHE_DIR, default ~/.cache/nvfp4) with all that mm
    and linear need for weights of these shapes. Needs no GPU. Triton keeps its own cache.
    """
    failures = 0
    with user_errors(), steps() as step:
        dtypes = tuple(_dtype("dtype", name) for name in dtype)
        added = _dtype("bias", bias) if bias else None
        workloads = [Workload(*_shape(text), max_m, dtypes, added) for text in shape]
        for backend in BACKENDS:
            if backend.compile_ahead is None:
                continue
            compilation = backend.compile_ahead(workloads, arch, workers)
            advance = step(f"{backend.name} for {arch}", compilation.kernels)
            for kernel, outcome in compilation.outcomes:
                advance()
                print(f"{backend.name}: {kernel}: {outcome}")
                failures += outcome.startswith("failed")
    if failures:
        raise typer.Exit(1)
