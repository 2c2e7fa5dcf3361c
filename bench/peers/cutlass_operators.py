"""NVIDIA's dense block-scaled GEMM for sm_100, static persistent, from nvidia-cutlass-operators.

pip installs that package as `cutlass.operators`, into nvidia-cutlass-dsl's `cutlass`.
"""

import os
import sys
import tempfile
import time
from importlib.metadata import PackageNotFoundError, version

from nvfp4.backends.cutedsl.gemm.choose import B200_SMS
from nvfp4.bench.peers import Compiled

PACKAGE = "nvidia-cutlass-operators"


def needs() -> list[str]:
    """The reasons why it cannot be compiled here; [] if it can."""
    try:
        version(PACKAGE)
    except PackageNotFoundError:
        return [f"needs the package {PACKAGE}, got none"]
    return []


def compile(tile_m: int, tile_n: int, cluster: tuple[int, int]) -> Compiled:
    """Compile NVFP4 x NVFP4, both K-major, to bf16, row-major, with M, N and K at run time.

    A tile of 256 rows has two CTAs and needs a cluster with an even number of rows. It needs no
    GPU. Call it once in a process that has not imported cutlass, which reads its environment then.
    The alignments and the identity epilogue are those that the package's own operator passes.
    """
    if "cutlass" in sys.modules:
        raise RuntimeError(f"{PACKAGE}: needs a process without cutlass, got one that imported it")
    with tempfile.TemporaryDirectory() as folder:
        os.environ |= {
            "CUTE_DSL_ARCH": "sm_100a",
            "CUTE_DSL_KEEP": "ptx,cubin",
            "CUTE_DSL_DUMP_DIR": folder,
        }
        import cutlass
        from cutlass import cute
        from cutlass.cute.nvgpu.common import OperandMajorMode
        from cutlass.cute.runtime import make_fake_stream, make_ptr
        from cutlass.operators.providers.cutedsl.gemm.implementations import (
            sm100_dense_blockscaled_static_persistent_impl as implementations,
        )

        def pointer(dtype: type, align: int) -> cute.Pointer:
            return make_ptr(dtype, 0, cute.AddressSpace.gmem, assumed_align=align)

        gemm = implementations.PersistentDenseBlockScaledGemmKernel(16, (tile_m, tile_n), cluster)
        data, scales = cutlass.Float4E2M1FN, cutlass.Float8E4M3FN
        k_major, row_major = OperandMajorMode.K, cutlass.tensor_utils.LayoutEnum.ROW_MAJOR
        size = cutlass.Int32(0)
        start = time.perf_counter()
        compiled = cute.compile(
            gemm,
            pointer(data, 16),
            pointer(data, 16),
            pointer(scales, 32),
            pointer(scales, 32),
            pointer(cutlass.BFloat16, 16),
            (k_major, k_major, row_major),
            (size, size, size, size),
            # The kernel takes its largest grid as a constant.
            B200_SMS // (cluster[0] * cluster[1]),
            make_fake_stream(),
            lambda x: x,
        )
        seconds = time.perf_counter() - start
        return Compiled(
            cubin=compiled.artifacts.CUBIN,
            ptx=compiled.artifacts.PTX,
            load_stages=gemm.num_ab_stage,
            accumulator_stages=2 if gemm.overlapping_accum else gemm.num_acc_stage,
            store_stages=gemm.num_c_stage,
            epilogue_warps=len(gemm.epilog_warp_id),
            shared=gemm.shared_storage.size_in_bytes(),
            seconds=seconds,
        )
