"""The GEMM's device functions, for one weight (mm.py) and for one an expert (grouped_mm.py).

Operands are swapped (the accumulator is [BN, BM] = B A^T), so that few tokens fill the narrow side
of the tensor-core instruction and the weights the wide one.

Before Blackwell both operands are decoded to float16, which holds e2m1 * sf * 2^-14 exactly, and
multiplied by the float16 tensor cores with float32 accumulation: NVFP4's products, exactly. A's
rows, which every program multiplies, come decoded already. On Blackwell tl.dot_scaled is the
hardware's own block-scaled instruction.
"""

import torch
import triton
import triton.language as tl
from torch import Tensor

from nvfp4.backends.triton.device.floats import (
    BLOCK,
    E2M1_F16_SCALE,
    INTERPRETED,
    e2m1_to_f16,
    e4m3_to_f16,
    from_f32,
    to_f32,
)
from nvfp4.backends.triton.device.tiles import scale_offsets
from nvfp4.backends.triton.gemm.config import K_GROUP
from nvfp4.backends.triton.runtime import architecture

GROUP = tl.constexpr(K_GROUP)
HOPPER = tl.constexpr(architecture.HOPPER)
BLACKWELL = tl.constexpr(architecture.BLACKWELL)

# Plane i is nibble i of the words. Of two words of four codes, in `words`, these make the planes of
# the odd nibbles, or of the even ones, times the two float16 scales in `scales`. A byte of `codes`
# holds one code as the upper byte of a float16: the sign on top, the other bits three down from
# there. Its other bits are what was there, until a plane is cut out.
_PLANES = """
    shr.b32 rest, {codes}, 3;
    lop3.b32 codes, {codes}, rest, 0x80808080, 0xE4;  // the third's ones choose the first
    and.b32 plane, codes, 0x8E008E00;
    mul.rn.f16x2 {upper}, plane, {scales};
    shl.b32 codes, codes, 8;
    and.b32 plane, codes, 0x8E008E00;
    mul.rn.f16x2 {lower}, plane, {scales};"""


def planes_ptx(odd: bool, lower: str, upper: str, words: str, scales: str) -> str:
    registers = "{.reg .b32 codes, rest, plane, even;"
    even = "" if odd else f"shl.b32 even, {words}, 4;"
    codes = words if odd else "even"
    return registers + even + _PLANES.format(**locals()) + "}"


DECODE_PTX = tl.constexpr(
    planes_ptx(True, "$1", "$3", "$4", "$5") + planes_ptx(False, "$0", "$2", "$4", "$5")
)


@triton.jit
def _planes(words, sf):
    """uint16 words of four codes, float16 scales -> four float16 tensors, e2m1 * sf * 2^-14: the
    words' nibbles 0 to 3.
    """
    if INTERPRETED:
        p0 = e2m1_to_f16(words & 0xF) * sf
        p1 = e2m1_to_f16((words >> 4) & 0xF) * sf
        p2 = e2m1_to_f16((words >> 8) & 0xF) * sf
        p3 = e2m1_to_f16(words >> 12) * sf
        return p0, p1, p2, p3
    else:
        return tl.inline_asm_elementwise(
            DECODE_PTX,
            "=&r,=&r,=&r,=&r,r,r",
            [words, sf],
            dtype=(tl.float16, tl.float16, tl.float16, tl.float16),
            is_pure=True,
            pack=2,
        )


@triton.jit
def decode(words, scales, R: tl.constexpr, BK: tl.constexpr, SM: tl.constexpr):
    """words uint16 [R, BK/4], scales uint8 [R, BK/16] -> float16 [R, BK], e2m1 * sf * 2^-14.

    K is reordered alike in both operands, within each GROUP: the words' nibbles 1, then their 3, 0
    and 2. Joining the planes so moves no data. The order does not depend on BK, nor do sums.
    """
    sf = tl.broadcast_to(e4m3_to_f16(scales, SM)[:, :, None], (R, BK // 16, 4)).reshape(R, BK // 4)
    p0, p1, p2, p3 = _planes(words, sf)
    planes = tl.join(tl.join(p1, p0), tl.join(p3, p2))  # [R, BK/4, 2, 2], read as plane 1, 3, 0, 2
    planes = planes.reshape(R, BK // GROUP, GROUP // 4, 2, 2)
    return planes.permute(0, 1, 3, 4, 2).reshape(R, BK)


@triton.jit
def store_for_gemm(values, out, rows, M, out_stride, R: tl.constexpr, C: tl.constexpr):
    """values float16 [R, C/16, 16], columns program_id(1) * C and on of out, in decode's order: an
    element's place is told by its nibble, and its word in the group.
    """
    # A block's four words are side by side in each plane: its thread stores them as they are.
    block = tl.program_id(1) * (C // BLOCK) + tl.arange(0, C // BLOCK)
    word = (block * 4)[:, None, None] + tl.arange(0, 4)
    place = word // (GROUP // 4) * GROUP + word % (GROUP // 4)
    at = out + rows.to(tl.int64)[None, :, None] * out_stride + place
    inside = (rows < M)[None, :, None] & (place < out_stride)
    nibbles = values.reshape(R, C // BLOCK, 4, 2, 2).permute(1, 0, 2, 3, 4)
    even, odd = tl.split(nibbles)
    n0, n2 = tl.split(even)
    n1, n3 = tl.split(odd)
    tl.store(at, n1, mask=inside)
    tl.store(at + GROUP // 4, n3, mask=inside)
    tl.store(at + GROUP // 4 * 2, n0, mask=inside)
    tl.store(at + GROUP // 4 * 3, n2, mask=inside)


@triton.jit
def load_step(data, rows, unit, stride, units, EVEN_K: tl.constexpr, live=None):
    """One step of an operand, in bytes, words or decoded elements [R, units]; zeros beyond K, and
    in rows that are not live.
    """
    at = data + rows[:, None].to(tl.int64) * stride + unit[None, :]
    if live is not None:
        return tl.load(at, mask=live[:, None] & (unit < units)[None, :], other=0)
    elif EVEN_K:
        return tl.load(at)
    else:
        return tl.load(at, mask=(unit < units)[None, :], other=0)


@triton.jit
def load_scales(scales, rows, k, stride, K, BK: tl.constexpr, EVEN_K: tl.constexpr):
    """One step of an operand's scales, uint8 [R, BK/16]; zeros beyond K: padding is not read."""
    block = k // BLOCK + tl.arange(0, BK // BLOCK)
    at = scales + scale_offsets(rows[:, None], block[None, :], stride, True)
    if EVEN_K:
        return tl.load(at)
    else:
        return tl.load(at, mask=(block < K // BLOCK)[None, :], other=0)


@triton.jit
def multiply(
    a, a_rows, a_scales, a_scale_rows, a_stride,
    b, b_rows, b_scales, b_scale_rows, b_stride, scale_stride, begin, end, K,
    SM: tl.constexpr, EVEN_K: tl.constexpr,
    BM: tl.constexpr, BN: tl.constexpr, BK: tl.constexpr, a_live=None,
):  # fmt: skip
    """Rows [BM] of A times rows [BN] of B, K's elements from begin to end: float32 [BN, BM]; each
    operand's rows, and theirs among its scales. Of A decoded, rows that are not live are not read.
    """
    CODES: tl.constexpr = 2 if SM >= BLACKWELL else 4  # a byte for the hardware, a word to decode
    acc = tl.zeros((BN, BM), tl.float32)
    for k in range(begin, end, BK):
        unit = k // CODES + tl.arange(0, BK // CODES)
        element = k + tl.arange(0, BK)
        if SM >= BLACKWELL:
            w = load_step(b, b_rows, unit, b_stride, K // CODES, EVEN_K)
            x = load_step(a, a_rows, unit, a_stride, K // CODES, EVEN_K)
            w_sf = load_scales(b_scales, b_scale_rows, k, scale_stride, K, BK, EVEN_K)
            x_sf = load_scales(a_scales, a_scale_rows, k, scale_stride, K, BK, EVEN_K)
            w_sf = w_sf.to(tl.float8e4nv, bitcast=True)
            x_sf = x_sf.to(tl.float8e4nv, bitcast=True)
            acc = tl.dot_scaled(w, w_sf, "e2m1", x.T, x_sf, "e2m1", acc)
        else:
            x = load_step(a, a_rows, element, a_stride, a_stride, EVEN_K, a_live)
            words = load_step(b, b_rows, unit, b_stride, K // CODES, EVEN_K)
            w_sf = load_scales(b_scales, b_scale_rows, k, scale_stride, K, BK, EVEN_K)
            w = decode(words, w_sf, BN, BK, SM)
            acc = tl.dot(w, x.T, acc)
    if SM < BLACKWELL:
        acc *= E2M1_F16_SCALE * E2M1_F16_SCALE
    return acc


@triton.jit
def await_previous(SM: tl.constexpr):
    """Before the first read of what the kernel before wrote, and before any write: wait for its
    end. Then the kernel after this one may start, and wait in turn. Not sooner: it may read weights
    before it waits (hopper.copy_weights), and these the kernel before this one may have written.
    """
    if SM >= HOPPER:
        tl.extra.cuda.gdc_wait()
        tl.extra.cuda.gdc_launch_dependents()


@triton.jit
def count_from_zero(arrived, tiles):
    """Zero the counters of a GEMM that comes after, `tiles` of them."""
    if arrived is not None and tl.program_id(0) + tl.program_id(1) == 0:
        for first in range(0, tiles, 1024):
            at = first + tl.arange(0, 1024)
            tl.store(arrived + at, tl.zeros((1024,), tl.int32), mask=at < tiles)


@triton.jit
def leave(acc, sums, split, arrived, BM: tl.constexpr, BN: tl.constexpr, SPLITS: tl.constexpr):
    """Leave a split's sums for the tile's last program; whether this is the last."""
    at = split * (BN * BM) + tl.arange(0, BN)[:, None] * BM + tl.arange(0, BM)[None, :]
    tl.store(sums + at, acc)
    tl.debug_barrier()  # all threads' stores come before the one that counts
    return tl.atomic_add(arrived, 1, sem="acq_rel") == SPLITS - 1


@triton.jit
def sum_of_splits(sums, BM: tl.constexpr, BN: tl.constexpr, SPLITS: tl.constexpr):
    """In the splits' order, whichever came last: the same bits each time."""
    at = tl.arange(0, BN)[:, None] * BM + tl.arange(0, BM)[None, :]
    acc = tl.load(sums + at, cache_modifier=".cg")
    for split in tl.static_range(1, SPLITS):
        acc += tl.load(sums + split * (BN * BM) + at, cache_modifier=".cg")
    return acc


@triton.jit
def store(
    acc, factor, bias, out, m, n, m_end, N, n_read, HAS_BIAS: tl.constexpr,
    BM: tl.constexpr, BN: tl.constexpr,
):  # fmt: skip
    """out[m, n] = acc[n, m] * factor (+ bias[n]), for m < m_end and n < N; n_read: n within N."""
    if HAS_BIAS:
        added = to_f32(tl.load(bias + n_read))
        acc = tl.fma(acc, factor, tl.broadcast_to(added[:, None], (BN, BM)))
    else:
        acc *= factor
    at = out + m[None, :].to(tl.int64) * N + n[:, None]
    inside = (m < m_end)[None, :] & (n < N)[:, None]
    tl.store(at, from_f32(acc, out.dtype.element_ty), mask=inside)


def words_of(data: Tensor) -> Tensor:
    """Packed uint8 [..., K/2] as uint16 [..., K/4]; copied only if rows do not start on words."""
    if data.storage_offset() % 2 or any(stride % 2 for stride in data.stride()[:-1]):
        data = data.clone(memory_format=torch.contiguous_format)
    return data.view(torch.uint16)
