"""Compile ahead of the first call: which kernels a workload needs, and making them, in parallel.

No GPU is needed to compile: a cache filled elsewhere, for the right architecture, serves as well.
"""

import os
from collections.abc import Iterable, Iterator
from concurrent.futures import ProcessPoolExecutor, as_completed
from itertools import product
from multiprocessing import get_context

import torch

from nvfp4.backends.cutedsl import FUSED_ACTIVATIONS, fused_needs
from nvfp4.backends.cutedsl.gemm.choose import (
    B200_SMS,
    choose_config,
    choose_grouped_config,
)
from nvfp4.backends.cutedsl.gemm.config import Alpha, Kernel
from nvfp4.backends.cutedsl.gemm.launch import kernel_of
from nvfp4.backends.cutedsl.gemm.launch_grouped import (
    glu_kernel_of,
    grouped_kernel_of,
    sized_for_rows,
)
from nvfp4.backends.cutedsl.gemm.layouts import sized
from nvfp4.backends.cutedsl.runtime.compile import compiled, is_cached
from nvfp4.backends.environment import may_split_k
from nvfp4.backends.workload import Workload
from nvfp4.spec.scale_rules import AMAX_OVER_SIX

FORMS = ((Alpha.ONE, False), (Alpha.ROWS, False), (Alpha.ONE, True), (Alpha.SEGMENTS, True))
"""(alpha, row_scale) that are compiled ahead: mm of two tensors' scales, with one of the first or
one for each row; linear, whose rows have their own, with one of the weight or one for each segment.
Linear's weights are constant, but for those that TMA cannot load where they are (launch.loadable).
"""


def kernels_for(workload: Workload) -> list[Kernel]:
    """Every kernel that the workload needs on a B200."""
    if workload.experts:
        return grouped_kernels_for(
            workload.experts,
            workload.n,
            workload.k,
            workload.max_m,
            workload.dtypes,
            workload.glu,
            workload.bias,
            workload.scale_rule,
            workload.activation,
        )
    found: dict[Kernel, None] = {}
    n, k, bias = workload.n, workload.k, workload.bias
    for dtype, m in product(workload.dtypes, workload.token_counts()):
        tile = choose_config(m, n, k, dtype.itemsize, splits=may_split_k()).tile
        aligned = n * dtype.itemsize % 16 == 0
        rows, columns = (n, m) if tile.swapped else (m, n)
        for alpha, row_scale in FORMS:
            constant = row_scale and k // 2 % 16 == 0
            kernel = kernel_of(tile, dtype, alpha, row_scale, bias, aligned, constant)
            clusters = tile.clusters(rows, columns, B200_SMS)
            found[sized(kernel, tile.tiles(rows, columns), clusters, k)] = None
    return list(found)


def grouped_kernels_for(
    experts: int,
    n: int,
    k: int,
    max_rows: int,
    dtypes: Iterable[torch.dtype],
    glu: bool = False,
    bias: torch.dtype | None = None,
    scale_rule: str = AMAX_OVER_SIX,
    activation: str = "",
) -> list[Kernel]:
    """Every kernel of grouped_mm, or with `glu` of grouped_mm_glu_quantize, for weights
    [experts, n, k] and up to max_rows rows of all experts together.

    Rows have a scale each, as dispatched tokens do. Weights have one scale, or gate and up have
    their own. With `glu` each activation has a kernel; activation: "" is each that is fused.
    """
    fused = glu and not fused_needs(n // 2, activation, bias is not None)
    found: dict[Kernel, None] = {}
    for dtype, rows in product(dtypes, Workload(n, k, max_rows).token_counts()):
        size = dtype.itemsize
        tile = choose_grouped_config(rows, experts, n, k, size, glu=fused).tile
        aligned = n * size % 16 == 0
        if fused:
            forms = product([activation] if activation else FUSED_ACTIVATIONS, (False, True))
            kernels = [glu_kernel_of(tile, dtype, True, *form, scale_rule) for form in forms]
        else:
            kernels = [
                grouped_kernel_of(tile, dtype, segments, True, bias, aligned)
                for segments in (False, True)
            ]
        for kernel in kernels:
            found[sized_for_rows(kernel, rows, experts, n, k, B200_SMS)] = None
    return list(found)


def compile_all(
    kernels: Iterable[Kernel], arch: str, workers: int = 0
) -> Iterator[tuple[str, str]]:
    """Compile what the cache lacks, in `workers` processes (0: one per CPU). Yields each kernel as
    it is done, and "cached", "compiled" or what went wrong.
    """
    missing = []
    for kernel in kernels:
        if is_cached(kernel, arch):
            yield str(kernel), "cached"
        else:
            missing.append(kernel)
    if not missing:
        return
    workers = min(workers or os.cpu_count() or 1, len(missing))
    # A fork would inherit the threads that this process has; the DSL is imported afresh.
    with ProcessPoolExecutor(workers, mp_context=get_context("spawn")) as pool:
        pending = {pool.submit(compiled, kernel, arch): kernel for kernel in missing}
        for future in as_completed(pending):
            error = future.exception()
            yield str(pending[future]), "compiled" if error is None else f"failed: {error}"
