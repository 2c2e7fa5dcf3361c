"""Compiling ahead of the first call: which kernels a workload needs, and making them, in parallel.

No GPU is needed to compile: a cache filled elsewhere, for the right architecture, serves as well.
"""

import os
from collections.abc import Iterable, Iterator
from concurrent.futures import ProcessPoolExecutor, as_completed
from itertools import product
from multiprocessing import get_context

from nvfp4.backends.contract import Workload
from nvfp4.backends.cutedsl.compile import compiled, is_cached
from nvfp4.backends.cutedsl.gemm.choose import choose_config
from nvfp4.backends.cutedsl.gemm.config import Kernel
from nvfp4.backends.cutedsl.gemm.launch import kernel_of
from nvfp4.backends.cutedsl.settings import may_split_k

FORMS = (("one", False), ("rows", False), ("one", True), ("segments", True))
"""(alpha, row_scale) that are compiled ahead: mm of two tensors' scales, with one of the first or
one for each row; linear, whose rows have their own, with one of the weight or one for each segment.
"""


def kernels_for(workload: Workload) -> list[Kernel]:
    """Every kernel that the workload needs on a B200."""
    found: dict[Kernel, None] = {}
    n, k, bias = workload.n, workload.k, workload.bias
    for dtype, m in product(workload.dtypes, workload.token_counts()):
        tile = choose_config(m, n, k, dtype.itemsize, splits=may_split_k()).tile
        aligned = n * dtype.itemsize % 16 == 0
        for alpha, row_scale in FORMS:
            found[kernel_of(tile, dtype, alpha, row_scale, bias, aligned)] = None
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
