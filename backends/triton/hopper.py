"""The GEMM's inner loop on Hopper, with its layouts and its waits written out (in Gluon,
Triton's lower level): sm_90 alone.

What Triton makes of gemm.multiply waits where it need not. Here half a step's weights are decoded,
in registers, while the tensor cores still multiply by the other half. The products, the order of K
and of its sums, and so the bits, are those of gemm.multiply.
"""

from triton.experimental import gluon
from triton.experimental.gluon import language as gl
from triton.experimental.gluon._runtime import constexpr_function
from triton.experimental.gluon.language.nvidia.ampere import async_copy
from triton.experimental.gluon.language.nvidia.hopper import (
    fence_async_shared,
    warpgroup_mma,
    warpgroup_mma_wait,
)

from nvfp4.backends.triton import tiles
from nvfp4.backends.triton.gemm import planes_ptx
from nvfp4.backends.triton.mm_config import K_GROUP

# Gluon's names since Triton 3.7, or those before.
barrier = gl.barrier if hasattr(gl, "barrier") else gl.thread_barrier
_load = "async_load" if hasattr(async_copy, "async_load") else "async_copy_global_to_shared"
copy = getattr(async_copy, _load)

BK = gl.constexpr(K_GROUP)
"""Elements of K a step."""

WORDS = gl.constexpr(K_GROUP // 4)
BLOCKS = gl.constexpr(K_GROUP // 16)
HALF = gl.constexpr(K_GROUP // 2)
ODD_PTX = gl.constexpr(planes_ptx(True, "$0", "$1", "$2", "$3"))
EVEN_PTX = gl.constexpr(planes_ptx(False, "$0", "$1", "$2", "$3"))
UNSCALE = gl.constexpr(tiles.E2M1_F16_SCALE.value**2)


# ---- layouts --------------------------------------------------------------------------------


@constexpr_function
def sums_layout(BM, num_warps):
    """[BN, BM]: a warpgroup has 64 rows of each 64 * num_warps / 4."""
    return gl.NVMMADistributedLayout([3, 0], [num_warps, 1], [16, BM, 16])


@constexpr_function
def words_layout(BN, num_warps):
    """[BN, WORDS]: as wgmma wants its left operand in registers, in words for elements. A thread so
    has, of each plane of nibbles that it decodes, what it multiplies.
    """
    lanes = [[0, 2], [0, 4], [1, 0], [2, 0], [4, 0]]
    warps = [[16 << i, 0] for i in range(num_warps.bit_length() - 1)]
    rows = [[i, 0] for i in (16 * num_warps << j for j in range(8)) if i < BN]
    registers = [[0, 1], [8, 0], [0, 8], [0, 16], *rows]
    return gl.DistributedLinearLayout(registers, lanes, warps, [], [BN, WORDS.value])


@constexpr_function
def blocks_layout(BN, num_warps):
    """[BN, BLOCKS, 4]: words_layout, a block's four words apart."""
    words = words_layout(BN, num_warps)

    def apart(bases):
        return [[row, word // 4, word % 4] for row, word in bases]

    registers, lanes, warps = map(apart, (words.reg_bases, words.lane_bases, words.warp_bases))
    return gl.DistributedLinearLayout(registers, lanes, warps, [], [BN, BLOCKS.value, 4])


@constexpr_function
def copy_layout(columns, vector, num_warps):
    """[rows, columns] to be copied, `vector` elements a thread at a time."""
    across = columns // vector
    return gl.BlockedLayout([1, vector], [32 // across, across], [num_warps, 1], [1, 0])


WORDS_SHARED = gl.constexpr(gl.SwizzledSharedLayout(8, 2, 4, order=[1, 0]))
SCALES_SHARED = gl.constexpr(gl.SwizzledSharedLayout(1, 1, 1, order=[1, 0]))
ROWS_SHARED = gl.constexpr(gl.NVMMASharedLayout(128, 16, rank=2))


# ---- the loop -------------------------------------------------------------------------------


@gluon.jit
def decode_half(b_smem, scale_smem, stage, PTX: gl.constexpr, BM: gl.constexpr, BN: gl.constexpr):
    """Half a step's weights, float16 [BN, HALF] as wgmma takes them: gemm.decode's, in its order.
    Either half reads its words anew: there are no registers to keep them in.
    """
    layout: gl.constexpr = blocks_layout(BN, gl.num_warps())
    words = b_smem.index(stage).load(words_layout(BN, gl.num_warps())).reshape([BN, BLOCKS, 4])
    sf = scale_smem.index(stage).load(gl.SliceLayout(2, layout))
    sf = gl.expand_dims(sf.to(gl.float8e4nv, bitcast=True).to(gl.float16), 2)
    words, sf = gl.broadcast(gl.convert_layout(words, layout, assert_trivial=True), sf)
    lower, upper = gl.inline_asm_elementwise(
        PTX,
        "=&r,=&r,r,r",
        [words, sf],
        dtype=(gl.float16, gl.float16),
        is_pure=True,
        pack=2,
    )
    planes = gl.join(lower, upper).reshape([BN, WORDS, 2]).permute([0, 2, 1]).reshape([BN, HALF])
    operand: gl.constexpr = gl.DotOperandLayout(0, sums_layout(BM, gl.num_warps()), 2)
    return gl.convert_layout(planes, operand, assert_trivial=True)


@gluon.jit
def rows_and_columns(R: gl.constexpr, C: gl.constexpr, layout: gl.constexpr):
    row = gl.arange(0, R, gl.SliceLayout(1, layout))
    column = gl.arange(0, C, gl.SliceLayout(0, layout))
    return gl.expand_dims(row, 1), gl.expand_dims(column, 0)


@gluon.jit
def weight_offsets(last, K: gl.constexpr, EVEN_N: gl.constexpr, BN: gl.constexpr):
    """Where a program's words and scales are, from its first row's on; beyond row `last` that row's
    are read again.
    """
    row, word = rows_and_columns(BN, WORDS, copy_layout(WORDS, 8, gl.num_warps()))
    if not EVEN_N:
        row = gl.minimum(row, last)
    words = row * (K // 4) + word
    row, block = rows_and_columns(BN, BLOCKS, copy_layout(BLOCKS, 4, gl.num_warps()))
    if not EVEN_N:
        row = gl.minimum(row, last)
    scales = row % 32 * 16 + row // 32 % 4 * 4 + block // 4 * 512 + block % 4
    if BN > 128:
        scales += row // 128 * (K * 8)
    return words, scales


@gluon.jit
def first_scale(first_n, K: gl.constexpr):
    """Where the scales of a program's first row are, from the weight's own."""
    return (first_n // 128).to(gl.int64) * (K * 8) + first_n % 128 // 32 * 4


@gluon.jit
def copy_weights(b, words, b_smem, b_scales, scales, scale_smem, step, STAGES: gl.constexpr):
    stage = step % STAGES
    copy(b_smem.index(stage), b + step * WORDS + words)
    at = b_scales + step * (BLOCKS // 4 * 512) + scales
    copy(scale_smem.index(stage), at)


@gluon.jit
def copy_activations(a, elements, a_smem, step, STAGES: gl.constexpr):
    at = a + step * BK + elements
    copy(a_smem.index(step % STAGES), at)


@gluon.jit
def await_copies(LATER: gl.constexpr):
    """Until all groups of copies but the LATER last are there, for every thread and for wgmma."""
    async_copy.wait_group(LATER)
    fence_async_shared()
    barrier()


@gluon.jit
def await_previous():
    """As gemm.await_previous."""
    wait: gl.constexpr = "griddepcontrol.wait; griddepcontrol.launch_dependents; mov.b32 $0, 0;"
    gl.inline_asm_elementwise(wait, "=r", [], dtype=gl.int32, is_pure=False, pack=1)


@gluon.jit
def multiply(
    a, elements, b, words_at, b_scales, scales, steps,
    BM: gl.constexpr, BN: gl.constexpr, STAGES: gl.constexpr,
):  # fmt: skip
    """Rows [BM] of A, decoded, times rows [BN] of B, over `steps` steps of K: float32 [BN, BM].

    a, b, b_scales: where they start; elements, words_at, scales: each thread's offsets from there.
    Weights are known from the start: they may come before the kernel before this one has ended.
    """
    a_smem = gl.allocate_shared_memory(gl.float16, [STAGES, BM, BK], ROWS_SHARED)
    b_smem = gl.allocate_shared_memory(gl.uint16, [STAGES, BN, WORDS], WORDS_SHARED)
    scale_smem = gl.allocate_shared_memory(gl.uint8, [STAGES, BN, BLOCKS], SCALES_SHARED)
    for step in gl.static_range(STAGES - 1):
        if step < steps:
            copy_weights(b, words_at, b_smem, b_scales, scales, scale_smem, step, STAGES)
    await_previous()
    for step in gl.static_range(STAGES - 1):
        if step < steps:
            copy_activations(a, elements, a_smem, step, STAGES)
        async_copy.commit_group()

    acc = gl.full([BN, BM], 0.0, gl.float32, sums_layout(BM, gl.num_warps()))
    await_copies(STAGES - 2)
    first = decode_half(b_smem, scale_smem, 0, ODD_PTX, BM, BN)
    second = first
    # While the tensor cores multiply by one half of a step's weights, the other half's are decoded.
    for step in range(steps):
        x = a_smem.index(step % STAGES).permute([1, 0])
        acc = warpgroup_mma(first, x.slice(0, HALF), acc, is_async=True)
        acc, second = warpgroup_mma_wait(1, [acc, second])
        second = decode_half(b_smem, scale_smem, step % STAGES, EVEN_PTX, BM, BN)
        acc = warpgroup_mma(second, x.slice(HALF, HALF), acc, is_async=True)
        # The step before is done: another may come into its place.
        await_copies(STAGES - 3)
        later = step + STAGES - 1
        if later < steps:
            copy_weights(b, words_at, b_smem, b_scales, scales, scale_smem, later, STAGES)
            copy_activations(a, elements, a_smem, later, STAGES)
        async_copy.commit_group()
        # Beyond the last step these are another one's, and go nowhere.
        acc, first = warpgroup_mma_wait(1, [acc, first])
        first = decode_half(b_smem, scale_smem, (step + 1) % STAGES, ODD_PTX, BM, BN)
    acc, second = warpgroup_mma_wait(0, [acc, second])
    async_copy.wait_group(0)
    barrier()  # the next tile's copies come into the same places
    return acc * UNSCALE


@gluon.jit
def store(
    acc, alpha, row_scale, bias, out, first_m, first_n, M, N, alpha_stride, row_scale_stride,
    segment, ALPHA_OF_ROWS: gl.constexpr, HAS_ROW_SCALE: gl.constexpr, HAS_BIAS: gl.constexpr,
    BM: gl.constexpr, BN: gl.constexpr,
):  # fmt: skip
    """out[m, n] = acc[n, m] * alpha * row_scale (+ bias), for m < M and n < N; as gemm.store."""
    layout: gl.constexpr = gl.BlockedLayout([8, 1], [8, 4], [1, gl.num_warps()], [0, 1])
    acc = gl.convert_layout(acc, layout)
    n, m = rows_and_columns(BN, BM, layout)
    n += first_n
    m += first_m
    n_read, m_read = gl.minimum(n, N - 1), gl.minimum(m, M - 1)
    if ALPHA_OF_ROWS:
        factor = gl.load(alpha + (m_read.to(gl.int64) * alpha_stride + n_read // segment))
    else:
        factor = gl.load(alpha + n_read // segment)
    if HAS_ROW_SCALE:
        factor = factor * gl.load(row_scale + m_read * row_scale_stride)
    if HAS_BIAS:
        added, _ = gl.broadcast(gl.load(bias + n_read).to(gl.float32), acc)
        factor, _ = gl.broadcast(factor, acc)
        acc = gl.fma(acc, factor, added)
    else:
        acc = acc * factor
    at = out + m.to(gl.int64) * N + n
    gl.store(at, acc.to(out.dtype.element_ty), mask=(m < M) & (n < N))
