"""python -m nvfp4 warmup: compile kernels ahead of the first call, with or without a GPU."""

import re
from typing import Annotated

import torch
import typer

from nvfp4.ahead.warmup import moe_workloads, workload_of
from nvfp4.backends.backend import Backend
from nvfp4.backends.problem import Problem
from nvfp4.backends.target import Target, sm_of
from nvfp4.backends.workload import Workload
from nvfp4.cli.errors import user_errors
from nvfp4.cli.progress import steps
from nvfp4.dispatch import BACKENDS
from nvfp4.spec.format import W4A4
from nvfp4.spec.scale_rules import AMAX_OVER_SIX

DTYPES = {"bfloat16": torch.bfloat16, "float16": torch.float16, "float32": torch.float32}


def weight_shape(text: str) -> tuple[int, int]:
    match = re.fullmatch(r"(\d+)x(\d+)", text)
    if not match or int(match[2]) % 16 or not int(match[1]) or not int(match[2]):
        raise ValueError(f"--shape needs NxK, K a multiple of 16, such as 6144x3584, got {text!r}")
    return int(match[1]), int(match[2])


def _experts(text: str) -> tuple[int, int, int]:
    match = re.fullmatch(r"(\d+)x(\d+)x(\d+)", text)
    experts, hidden, intermediate = map(int, match.groups()) if match else (0, 0, 0)
    if not experts * hidden * intermediate or hidden % 16 or intermediate % 16:
        need = "ExHxI, H and I multiples of 16, such as 32x7168x2048"
        raise ValueError(f"--moe needs {need}, got {text!r}")
    return experts, hidden, intermediate


def _dtype(option: str, name: str) -> torch.dtype:
    if name not in DTYPES:
        raise ValueError(f"--{option} needs one of {', '.join(DTYPES)}, got {name!r}")
    return DTYPES[name]


def warmup(
    shape: Annotated[
        list[str] | None, typer.Option(help="A weight's NxK; may be given again.")
    ] = None,
    moe: Annotated[
        list[str] | None,
        typer.Option(help="Experts here, hidden and intermediate size, ExHxI; may be given again."),
    ] = None,
    top_k: Annotated[int, typer.Option(min=1, help="With --moe: choices of a token.")] = 8,
    calibrated: Annotated[
        bool, typer.Option(help="For calls with static scales of the activations.")
    ] = False,
    segments: Annotated[
        int,
        typer.Option(min=1, help="With --shape: global scales of a fused weight."),
    ] = 1,
    max_m: Annotated[int, typer.Option(min=1, help="The most rows of activations: tokens.")] = 8192,
    dtype: Annotated[list[str], typer.Option(help="The outputs' dtype; may be given again.")] = [  # noqa: B006
        "bfloat16"
    ],
    bias: Annotated[str, typer.Option(help="The biases' dtype; default: calls without.")] = "",
    scale_rule: Annotated[
        str, typer.Option(help="Of activations' block scales, as in the calls.")
    ] = AMAX_OVER_SIX,
    activation_format: Annotated[
        str, typer.Option(help="With --shape: nvfp4 for W4A4 calls, bf16 for W4A16 calls.")
    ] = W4A4,
    arch: Annotated[str, typer.Option(help="What to compile for.")] = "sm_100a",
    workers: Annotated[int, typer.Option(min=0, help="Processes; 0: one per CPU.")] = 0,
) -> None:
    """Compile the kernels that mm, linear and moe need for weights of these shapes; needs no GPU.

    The caches are NVFP4_CACHE_DIR, default ~/.cache/nvfp4, and Triton's own.
    """
    failures = 0
    with user_errors(), steps() as step:
        dtypes = tuple(_dtype("dtype", name) for name in dtype)
        added = _dtype("bias", bias) if bias else None
        workloads = [
            workload_of(
                *(*weight_shape(text), max_m, dtypes, added),
                scale_rule=scale_rule,
                activation_format=activation_format,
                segments=segments,
                calibrated=calibrated,
            )
            for text in shape or ()
        ]
        for text in moe or ():
            sizes = *_experts(text), max_m, top_k
            workloads += moe_workloads(*sizes, dtypes, calibrated, scale_rule)
        if not workloads:
            raise ValueError("warmup needs a --shape or a --moe, got neither")
        for backend, works in _shared_out(workloads, sm_of(arch)).items():
            assert backend.compile_ahead is not None
            compilation = backend.compile_ahead(works, arch, workers)
            advance = step(f"{backend.name} for {arch}", compilation.kernels)
            for kernel, outcome in compilation.outcomes:
                advance()
                print(f"{backend.name}: {kernel}: {outcome}")
                failures += outcome.startswith("failed")
    if failures:
        raise typer.Exit(1)


def _shared_out(workloads: list[Workload], sm: int) -> dict[Backend, list[Workload]]:
    """Share the workloads out to the backends that compile ahead; ValueError if none can."""
    shares: dict[Backend, list[Workload]] = {}
    for work in workloads:
        problem = Problem(work.op, Target("cuda", sm))
        backends = [b for b in BACKENDS if b.compile_ahead is not None and not b.reasons(problem)]
        if not backends:
            need = f"a backend that compiles {problem.op} ahead for {problem.target}"
            raise ValueError(f"warmup needs {need}, got none")
        for backend in backends:
            shares.setdefault(backend, []).append(work)
    return shares
