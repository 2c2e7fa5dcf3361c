"""lightmoe's grouped GEMM for sm_100, with and without SwiGLU and quantization in its epilogue.

Its metadata asks for Python 3.12, but what is compiled here runs on 3.11 too:

    pip install --no-deps --ignore-requires-python lightmoe
"""

import os
import sys
import tempfile
import time
from importlib.metadata import PackageNotFoundError, version

from nvfp4.backends.cutedsl.gemm.choose import B200_SMS
from nvfp4.bench.peers import Compiled

PACKAGE = "lightmoe"
EXPERTS, N, K = 8, 4096, 4096
"""Constants of its kernels; only the sizes of loops depend on them."""


def needs() -> list[str]:
    """The reasons why it cannot be compiled here; [] if it can."""
    try:
        version(PACKAGE)
    except PackageNotFoundError:
        return [f"needs the package {PACKAGE}, got none"]
    return []


def grouped(tile_m: int, tile_n: int, cluster: tuple[int, int]) -> Compiled:
    """Compile the grouped GEMM with an alpha an expert, bf16 out."""
    return _compile(tile_m, tile_n, cluster, None)


def fused(tile_m: int, tile_n: int, cluster: tuple[int, int]) -> Compiled:
    """Compile the grouped GEMM with SwiGLU, NVFP4 out."""
    return _compile(tile_m, tile_n, cluster, "swiglu")


def _compile(
    tile_m: int, tile_n: int, cluster: tuple[int, int], activation: str | None
) -> Compiled:
    """Compile as the package's own runtime does for prefill, with PDL and a static schedule.

    Call it once in a process that has not imported cutlass, which reads its environment then.
    """
    if "cutlass" in sys.modules:
        raise RuntimeError(f"{PACKAGE}: needs a process without cutlass, got one that imported it")
    with tempfile.TemporaryDirectory() as folder:
        os.environ |= {
            "CUTE_DSL_ARCH": "sm_100a",
            "CUTE_DSL_KEEP": "ptx,cubin",
            "CUTE_DSL_DUMP_DIR": folder,
        }
        from cutlass import BFloat16, Float4E2M1FN, Float8E4M3FN, Float32, Int32, cute
        from cutlass.cute.runtime import make_fake_compact_tensor, make_fake_stream
        from lightmoe.kernels._common import fake_tensor
        from lightmoe.kernels.grouped.kernel import Sm100GroupedBlockScaledGemmKernel

        def form(dtype: type) -> object:
            """A tensor that says no more than how its dtype is laid out."""
            sizes = cute.sym_int(divisibility=32), cute.sym_int(divisibility=32), cute.sym_int()
            return make_fake_compact_tensor(dtype, sizes, stride_order=(1, 0, 2), assumed_align=16)

        def scales(rows: object, experts: int, columns: int) -> object:
            return fake_tensor(Float8E4M3FN, (experts, rows, columns // 64, 32, 4, 4))

        out = Float4E2M1FN if activation else BFloat16
        columns = N // 2 if activation else N
        gemm = Sm100GroupedBlockScaledGemmKernel(
            16, (tile_m, tile_n), cluster, activation, use_dynamic_sched=False, use_pdl=True
        )
        scale_tiles, clusters = cute.sym_int(), B200_SMS // (cluster[0] * cluster[1])
        start = time.perf_counter()
        compiled = cute.compile(
            gemm,
            *(form(t) for t in (Float4E2M1FN, Float4E2M1FN, out, Float8E4M3FN, Float8E4M3FN)),
            fake_tensor(Float4E2M1FN, (cute.sym_int(), K), 32),
            fake_tensor(Float4E2M1FN, (EXPERTS, N, K), 32),
            fake_tensor(out, (cute.sym_int(), columns), 128 // out.width),
            fake_tensor(BFloat16, (cute.sym_int(), 2 * N), 8),  # unread: for training
            fake_tensor(BFloat16, (cute.sym_int(), N), 8),  # unread: for training
            scales(scale_tiles, 1, K),
            scales(-(-N // 128), EXPERTS, K),
            fake_tensor(Int32, (EXPERTS + 1,), 1),
            fake_tensor(Int32, (1,), 1),
            fake_tensor(Int32, (cute.sym_int(),), 1),
            fake_tensor(Int32, (cute.sym_int(),), 1),
            *(EXPERTS, N, K),
            fake_tensor(Float32, (EXPERTS,), 1),
            scales(scale_tiles, 1, columns if activation else K),
            fake_tensor(Float32, (2,), 1),
            *(clusters, clusters),
            make_fake_stream(),
            options="--enable-tvm-ffi --opt-level 2",
        )
        seconds = time.perf_counter() - start
        return Compiled(
            cubin=compiled.artifacts.CUBIN,
            ptx=compiled.artifacts.PTX,
            load_stages=gemm.num_ab_stage,
            accumulator_stages=gemm.num_acc_stage,
            store_stages=gemm.num_c_stage,
            epilogue_warps=len(gemm.epilog_warp_id),
            shared=gemm.shared_storage.size_in_bytes(),
            seconds=seconds,
        )
