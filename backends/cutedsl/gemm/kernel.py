"""The GEMM kernel: host function, tensor maps, roles.

Six warps: four drain the accumulators (epilogue.py), one issues the MMAs (mainloop.py) and one
loads (load.py). Everything that a call changes (addresses, sizes, strides, offsets of experts) is a
run-time argument: one compiled function serves them all.
"""

import cutlass
import cutlass.cute as cute
from cutlass import Int32, Int64, const_expr
from cutlass.cute.nvgpu import cpasync
from cutlass.cute.runtime import make_fake_stream, make_ptr

from nvfp4.backends.cutedsl.gemm import epilogue, groups, mainloop, ptx
from nvfp4.backends.cutedsl.gemm.config import CTA_ROWS, STAGE_K, Epilogue
from nvfp4.backends.cutedsl.gemm.factors import Factors
from nvfp4.backends.cutedsl.gemm.groups import Experts
from nvfp4.backends.cutedsl.gemm.layouts import Layout
from nvfp4.backends.cutedsl.gemm.load import load
from nvfp4.backends.cutedsl.gemm.output import Output
from nvfp4.backends.cutedsl.gemm.schedule import Grid
from nvfp4.backends.cutedsl.gemm.sizes import (
    K_BLOCKS,
    MMA_K,
    ROW_BYTES,
    SCALE_ROWS,
    SCALE_WORDS,
    STORE_BYTES,
    WARP_ROWS,
)
from nvfp4.backends.cutedsl.gemm.store_elements import DTYPES
from nvfp4.backends.cutedsl.gemm.store_quantized import Quantized


@cute.jit
def operand_map(data: cute.Pointer, rows: Int32, k: Int32, stride: Int64, box_rows):
    """The tensor map of packed rows [rows, k / 2] bytes, `stride` bytes apart."""
    layout = cute.make_layout((rows, k // 2), stride=(cute.assume(stride, 16), 1))
    rows_of_box = cute.make_layout((box_rows, ROW_BYTES), stride=(ROW_BYTES, 1))
    box = cute.make_composed_layout(cute.make_swizzle(3, 4, 3), 0, rows_of_box)
    copy = cpasync.CopyBulkTensorTileG2SOp()
    tensor = cute.make_tensor(data, layout)
    return cpasync.make_tiled_tma_atom(copy, tensor, box, (box_rows, ROW_BYTES)).atom


@cute.jit
def scale_map(scales: cute.Pointer, tiles: Int32, k: Int32, k_blocks, row_tiles):
    """The tensor map of swizzled scales: [row tiles, K / 64 scale tiles], in words of 8 bytes."""
    words = (k + MMA_K - 1) // MMA_K * SCALE_WORDS
    shape = (row_tiles, k_blocks * SCALE_WORDS)
    box = cute.make_layout(shape, stride=(k_blocks * SCALE_WORDS, 1))
    copy = cpasync.CopyBulkTensorTileG2SOp()
    tensor = cute.make_tensor(
        scales, cute.make_layout((tiles, words), stride=(cute.assume(words, SCALE_WORDS), 1))
    )
    return cpasync.make_tiled_tma_atom(copy, tensor, box, shape).atom


@cute.jit
def operand_maps(layout: cutlass.Constexpr[Layout], a, b, k: Int32):
    """The maps of A, B, A's scales, B's scales; a, b: data, rows, stride, scales, scale tiles."""
    a_data, a_rows, a_stride, a_scales, a_tiles = a
    b_data, b_rows, b_stride, b_scales, b_tiles = b
    b_box_rows = layout.b_rows // (layout.b_sharers * layout.b_boxes)
    b_box_tiles = 1 if const_expr(layout.glu) else layout.tmem.b_scale_tiles
    return (
        operand_map(a_data, a_rows, k, a_stride, CTA_ROWS // layout.a_sharers),
        operand_map(b_data, b_rows, k, b_stride, b_box_rows),
        scale_map(a_scales, a_tiles, k, K_BLOCKS // layout.a_sharers, 1),
        scale_map(b_scales, b_tiles, k, K_BLOCKS // layout.b_scale_sharers, b_box_tiles),
    )


@cute.jit
def output_map(layout: cutlass.Constexpr[Layout], out: cute.Pointer, rows, columns, stride):
    """The tensor map of the output, [rows, columns]: boxes of one warp."""
    box_columns = STORE_BYTES * 8 // out.value_type.width
    shape = (WARP_ROWS, box_columns)
    box = cute.make_composed_layout(
        cute.make_swizzle(3, 4, 3), 0, cute.make_layout(shape, stride=(box_columns, 1))
    )
    aligned = 128 // out.value_type.width
    tensor = cute.make_tensor(
        out, cute.make_layout((rows, columns), stride=(cute.assume(stride, aligned), 1))
    )
    return cpasync.make_tiled_tma_atom(cpasync.CopyBulkTensorTileS2GOp(), tensor, box, shape).atom


@cute.jit
def gemm(
    a: cute.Pointer,
    b: cute.Pointer,
    a_scales: cute.Pointer,
    b_scales: cute.Pointer,
    alpha: cute.Pointer,
    row_scale: cute.Pointer,
    bias: cute.Pointer,
    out: cute.Pointer,
    rows: Int32,
    columns: Int32,
    k: Int32,
    a_stride: Int64,
    b_stride: Int64,
    out_stride: Int64,
    alpha_stride: Int64,
    segment: Int32,
    row_scale_stride: Int32,
    clusters: Int32,
    group_m: Int32,
    stream,
    layout: cutlass.Constexpr[Layout],
):
    """D [rows, columns] = A B^T; the strides of a and b in bytes, the others in elements.

    group_m: rows of cluster tiles that are rasterized together (schedule.py).
    """
    tile = layout.tile
    a_tiles, b_tiles = ((n + SCALE_ROWS - 1) // SCALE_ROWS for n in (rows, columns))
    maps = operand_maps(
        layout, (a, rows, a_stride, a_scales, a_tiles), (b, columns, b_stride, b_scales, b_tiles), k
    )
    out_map = None
    if const_expr(layout.epilogue.tma_store):
        out_map = output_map(layout, out, rows, columns, out_stride)

    high, wide = tile.cluster_tile
    grid = ((rows + high - 1) // high, (columns + wide - 1) // wide, group_m)
    sizes = (rows, columns, (k + STAGE_K - 1) // STAGE_K)
    factors = Factors(alpha, alpha_stride, segment, row_scale, row_scale_stride, bias)
    kernel(maps, out_map, out, out_stride, factors, sizes, grid, None, None, layout).launch(
        grid=[clusters * tile.cluster, 1, 1],
        block=[layout.threads, 1, 1],
        cluster=[tile.cluster, 1, 1],
        smem=layout.shared_bytes,
        min_blocks_per_mp=1,
        use_pdl=True,
        stream=stream,
    )


def signature(epilogue: Epilogue) -> list[object]:
    """gemm's arguments but its layout, as types: pointers and what they are aligned to, integers, a
    stream.
    """
    operands = [(cutlass.Uint8, 16)] * 2 + [(cutlass.Int64, 16)] * 2
    factors = [(cutlass.Float32, 4)] * 2
    bias, out = DTYPES[epilogue.bias_dtype], DTYPES[epilogue.out_dtype]
    store = 16 if epilogue.tma_store else out.width // 8
    pointers = [*operands, *factors, (bias, bias.width // 8), (out, store)]
    sizes, strides = [Int32(1)] * 3, [Int64(16)] * 4
    return [
        *(make_ptr(t, 16, cute.AddressSpace.gmem, assumed_align=n) for t, n in pointers),
        *sizes,
        *strides,
        *[Int32(1)] * 4,
        make_fake_stream(),
    ]


@cute.kernel
def kernel(
    maps, out_map, out: cute.Pointer, out_stride: Int64, factors: Factors, sizes, grid,
    experts: Experts | None, quantized: Quantized | None, layout: cutlass.Constexpr[Layout],
):  # fmt: skip
    """grid: the tiles that D takes, or, grouped, experts; quantized: where a gated linear unit's
    result goes.
    """
    tile = layout.tile
    rows, columns, k_stages = sizes
    block, _, _ = cute.arch.block_idx()
    blocks, _, _ = cute.arch.grid_dim()
    rank = Int32(0)
    if const_expr(tile.cluster > 1):
        rank = cute.arch.make_warp_uniform(cute.arch.block_idx_in_cluster())
    cluster, clusters = block // tile.cluster, blocks // tile.cluster
    warp = cute.arch.make_warp_uniform(cute.arch.warp_idx())
    smem = cute.arch.get_dyn_smem(cutlass.Uint8, alignment=1024).toint()

    if warp == layout.load_warp:
        for atom in maps:
            cpasync.prefetch_descriptor(atom)
        if cute.arch.lane_idx() == 0:
            init_barriers(layout, smem)
        cute.arch.mbarrier_init_fence()
    if const_expr(layout.grouped):
        groups.tabulate(layout, experts, smem + layout.table, warp == layout.mma_warp)
    if const_expr(tile.cluster > 1):
        # A pair allocates together, by a handshake through shared memory: no CTA may begin it
        # before its peer is known to run (PTX ISA, tcgen05.alloc with .cta_group::2).
        cute.arch.cluster_arrive_relaxed()
        cute.arch.cluster_wait()
    if warp == 0:
        ptx.tmem_alloc(smem + layout.tmem_holder, layout.tmem.columns, tile.ctas)
        ptx.tmem_fence_before()
    cute.arch.sync_threads()
    ptx.tmem_fence_after()
    tmem = ptx.load_shared(smem + layout.tmem_holder, 1, Int32)[0]
    if const_expr(layout.grouped):
        schedule = groups.schedule(experts, smem + layout.table, cluster, clusters)
    else:
        schedule = Grid(rows, columns, grid[0], grid[1], grid[2], cluster, clusters)

    if warp == layout.load_warp:
        load(layout, maps, smem, rank, k_stages, schedule)
    leads = warp == layout.mma_warp
    if const_expr(tile.ctas == 2):
        leads = leads and rank % 2 == 0
    if leads:
        mainloop.multiply(layout, smem, tmem, rank, k_stages, schedule)
    if warp < layout.epilogue_warps:
        output = Output(out_map, out, out_stride)
        epilogue.drain(
            layout, output, factors, quantized, smem, tmem, warp, rank, schedule
        )  # fmt: skip

    ptx.tmem_fence_before()
    cute.arch.sync_threads()
    if const_expr(tile.cluster > 1):
        # No CTA leaves while another may still read its memory or arrive at its barriers. The
        # reads of split-K need a release; tensor memory is ordered by tcgen05.fence.
        if const_expr(tile.split_k > 1):
            cute.arch.cluster_arrive()
        else:
            cute.arch.cluster_arrive_relaxed()
        cute.arch.cluster_wait()
    if warp == 0:
        ptx.tmem_fence_after()
        ptx.tmem_free(tmem, layout.tmem.columns, tile.ctas)


@cute.jit
def init_barriers(layout: cutlass.Constexpr[Layout], smem: Int32):
    """Arrivals per phase: a stage is filled by one load warp, and emptied by every MMA that reads
    what this CTA loaded; warps of the epilogue arrive one by one.
    """
    tile = layout.tile
    readers = tile.cluster_columns + tile.cluster_rows // tile.ctas - 1
    for stage in cutlass.range_constexpr(layout.stages):
        ptx.mbarrier_init(smem + layout.full + 8 * stage, 1)
        ptx.mbarrier_init(smem + layout.empty + 8 * stage, readers)
    for i in cutlass.range_constexpr(2):
        block = smem + layout.acc_block + i * layout.acc_pitch
        ptx.mbarrier_init(block + layout.acc_full, 1)
        ptx.mbarrier_init(block + layout.acc_empty, layout.epilogue_warps * tile.ctas)
    ptx.mbarrier_init(smem + layout.partial_full, layout.epilogue_warps * tile.split_k)
