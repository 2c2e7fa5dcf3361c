"""Other people's kernels, compiled for comparison. Each needs its package; nvfp4 needs none."""

from typing import NamedTuple


class Compiled(NamedTuple):
    """A GEMM compiled for sm_100a. Stages of the operands' ring, accumulators in TMEM (two that
    overlap are two), stages of the output's buffer; bytes of dynamic shared memory a block asks
    for; seconds from the kernel's Python to what can be launched, imports left out.
    """

    cubin: bytes
    ptx: str
    load_stages: int
    accumulator_stages: int
    store_stages: int
    shared: int
    seconds: float
