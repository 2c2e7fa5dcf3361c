"""Public kernels, compiled for comparison; each needs a package that nvfp4 does not."""

from typing import NamedTuple


class Compiled(NamedTuple):
    """A GEMM compiled for sm_100a.

    load_stages, store_stages: stages of the buffers of operands and of the output.
    accumulator_stages: accumulators in TMEM; two that overlap count as two.
    epilogue_warps: warps that share a tile's epilogue.
    shared: bytes of dynamic shared memory of a block.
    seconds: the time of compilation, without imports.
    """

    cubin: bytes
    ptx: str
    load_stages: int
    accumulator_stages: int
    store_stages: int
    epilogue_warps: int
    shared: int
    seconds: float
