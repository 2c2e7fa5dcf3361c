"""Preparing for calls: kernels compiled and loaded before the first one, as CUDA graphs need."""

from collections.abc import Iterable

import torch

from nvfp4.backends.contract import Problem, Workload, target_of
from nvfp4.dispatch import choose
from nvfp4.dispatch.select import requested
from nvfp4.ops.linear import linear
from nvfp4.ops.quantize import quantize_weight


def warmup(
    shapes: Iterable[tuple[int, int]],
    max_m: int = 8192,
    dtypes: Iterable[torch.dtype] = (torch.bfloat16,),
    bias: torch.dtype | None = None,
    device: torch.device | str | None = None,
    backend: str = "",
) -> list[str]:
    """Compile, and on a GPU run once, what mm and linear need for weights of these shapes.

    After it no call with these shapes compiles anything: it can be captured in a CUDA graph.

    Args:
        shapes: (N, K) of the weights.
        max_m: the most rows of activations.
        dtypes: of the activations, and so of the outputs.
        bias: the biases' dtype, None for none.
        device: default the current GPU if there is one, else the CPU.
        backend: as the ops' own argument.

    Returns what was compiled ahead, a line a kernel. Raises RuntimeError if a kernel cannot be
    compiled, ValueError for a shape that no weight has.
    """
    where = torch.device(device or ("cuda" if torch.cuda.is_available() else "cpu"))
    workloads = [_workload(n, k, max_m, tuple(dtypes), bias) for n, k in shapes]
    target = target_of(where)
    chosen = choose(Problem("mm", target), requested(backend))
    done = []
    if chosen.compile_ahead is not None:
        arch = f"sm_{target.sm or 100}a"
        for kernel, outcome in chosen.compile_ahead(workloads, arch, 0).outcomes:
            if outcome.startswith("failed"):
                raise RuntimeError(f"nvfp4.warmup: {kernel}: {outcome}")
            done.append(f"{kernel}: {outcome}")
    if where.type == "cuda":
        for workload in workloads:
            _run(workload, where, backend)
        torch.cuda.synchronize(where)
    return done


def _workload(
    n: int, k: int, max_m: int, dtypes: tuple[torch.dtype, ...], bias: torch.dtype | None
) -> Workload:
    if n < 1 or k < 16 or k % 16:
        need = "(N, K) with N positive and K a positive multiple of 16"
        raise ValueError(f"nvfp4.warmup: shapes needs {need}, got {(n, k)}")
    if max_m < 1:
        raise ValueError(f"nvfp4.warmup: max_m needs a positive number, got {max_m}")
    return Workload(n, k, max_m, dtypes, bias)


def _run(workload: Workload, device: torch.device, backend: str) -> None:
    """Each call once: what compiles at a first call has then done so, and is loaded."""
    n, k = workload.n, workload.k
    weight = quantize_weight(torch.zeros(n, k, dtype=torch.bfloat16, device=device))
    scale = weight.global_scale
    bias = None if workload.bias is None else torch.zeros(n, dtype=workload.bias, device=device)
    for dtype in workload.dtypes:
        x = torch.zeros(workload.max_m, k, dtype=dtype, device=device)
        for m in workload.token_counts():
            linear(x[:m], weight.data, weight.scales, scale, None, bias, backend)
