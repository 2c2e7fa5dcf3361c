"""The host function of grouped kernels: one tensor map over all experts for each operand.

Which rows are an expert's, the kernel reads from the offsets: the host needs only how many rows and
experts there are.
"""

import cutlass
import cutlass.cute as cute
from cutlass import Float32, Int32, Int64, const_expr
from cutlass.cute.runtime import make_fake_stream, make_ptr

from nvfp4.backends.cutedsl.gemm.config import STAGE_K, Epilogue
from nvfp4.backends.cutedsl.gemm.factors import Factors
from nvfp4.backends.cutedsl.gemm.groups import Experts
from nvfp4.backends.cutedsl.gemm.kernel import kernel, operand_maps, output_map
from nvfp4.backends.cutedsl.gemm.layouts import Layout
from nvfp4.backends.cutedsl.gemm.sizes import MMA_K, SCALE_ROWS, SCALE_TILE
from nvfp4.backends.cutedsl.gemm.store_elements import DTYPES
from nvfp4.backends.cutedsl.gemm.store_quantized import Quantized


@cute.jit
def grouped_gemm(
    tokens: cute.Pointer,
    weights: cute.Pointer,
    token_scales: cute.Pointer,
    weight_scales: cute.Pointer,
    alpha: cute.Pointer,
    row_scale: cute.Pointer,
    bias: cute.Pointer,
    offsets: cute.Pointer,
    out: cute.Pointer,
    out_scales: cute.Pointer,
    p: cute.Pointer,
    global_scale: cute.Pointer,
    rows: Int32,
    n: Int32,
    k: Int32,
    experts: Int32,
    token_scale_tiles: Int32,
    token_stride: Int64,
    weight_stride: Int64,
    out_stride: Int64,
    segments: Int32,
    p_stride: Int32,
    clusters: Int32,
    limit: Float32,
    stream,
    layout: cutlass.Constexpr[Layout],
):
    """tokens [rows, K], weights [experts * n, K]; the strides of both in bytes, out's in elements.
    A gated linear unit's out is bytes of codes; out_scales, p, global_scale and limit are its.
    """
    tile = layout.tile
    scale_tiles = (n + SCALE_ROWS - 1) // SCALE_ROWS
    a = (tokens, rows, token_stride, token_scales, token_scale_tiles)
    b = (weights, experts * n, weight_stride, weight_scales, experts * scale_tiles)
    if const_expr(tile.swapped):
        a, b = b, a
    maps = operand_maps(layout, a, b, k)
    out_map = None
    if const_expr(layout.epilogue.tma_store):
        out_map = output_map(layout, out, rows, n, out_stride)

    quantized, results = None, n
    if const_expr(layout.glu):
        results = n // 2
        pitch = Int64(results // MMA_K * SCALE_TILE)
        quantized = Quantized(out, out_stride, out_scales, pitch, p, p_stride, global_scale, limit)
    weight_tiles = (results + layout.weight_step - 1) // layout.weight_step
    factors = Factors(alpha, Int64(segments), n // segments, row_scale, Int32(1), bias, n)
    table = Experts(offsets, experts, n, scale_tiles, weight_tiles)
    sizes = (rows, n, (k + STAGE_K - 1) // STAGE_K)
    kernel(maps, out_map, out, out_stride, factors, sizes, None, table, quantized, layout).launch(
        grid=[clusters * tile.cluster, 1, 1],
        block=[layout.threads, 1, 1],
        cluster=[tile.cluster, 1, 1],
        smem=layout.shared_bytes,
        min_blocks_per_mp=1,
        use_pdl=True,
        stream=stream,
    )


def grouped_signature(epilogue: Epilogue) -> list[object]:
    """grouped_gemm's arguments but its layout, as kernel.signature's."""
    bias, out = DTYPES[epilogue.bias_dtype], DTYPES[epilogue.out_dtype]
    store = 16 if epilogue.tma_store else out.width // 8
    if epilogue.glu:
        out, store = cutlass.Uint8, 32
    pointers = [
        *[(cutlass.Uint8, 16)] * 2,
        *[(cutlass.Int64, 16)] * 2,
        *[(Float32, 4)] * 2,
        (bias, bias.width // 8),
        (Int32, 4),
        (out, store),
        (cutlass.Uint8, 16),
        *[(Float32, 4)] * 2,
    ]
    return [
        *(make_ptr(t, 32, cute.AddressSpace.gmem, assumed_align=n) for t, n in pointers),
        *[Int32(1)] * 5,
        *[Int64(16)] * 3,
        *[Int32(1)] * 3,
        Float32(1.0),
        make_fake_stream(),
    ]
