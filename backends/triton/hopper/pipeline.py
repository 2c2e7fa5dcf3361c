"""The GEMM's pipeline on Hopper, in Gluon, Triton's lower level: sm_90 alone.

A program's warps have roles. One warp has weights copied to shared memory, one activations, by the
tensor memory accelerator. Two groups of four warps are consumers: each decodes its 64 rows of
weights, in registers, and multiplies. They take turns at the tensor cores, so that one decodes
while the other multiplies ("ping-pong"); or an SM has two programs with fewer registers, and the
other program does. Products, the order of K and of its sums, and so the bits, are those of
gemm.multiply.

A step's wgmmas are issued all at once, with nothing computed between: otherwise ptxas has each wait
for the one before.
"""

from typing import NamedTuple

import torch
from torch import Tensor
from triton.experimental import gluon
from triton.experimental.gluon import constexpr_function
from triton.experimental.gluon import language as gl
from triton.experimental.gluon.language.nvidia.hopper import (
    fence_async_shared,
    mbarrier,
    warpgroup_mma,
    warpgroup_mma_wait,
)
from triton.experimental.gluon.nvidia.hopper import TensorDescriptor

from nvfp4.backends.triton.device import floats
from nvfp4.backends.triton.gemm.config import HOPPER_BN, K_GROUP, HopperConfig
from nvfp4.backends.triton.gemm.decode import planes_ptx
from nvfp4.backends.triton.runtime.compat import aggregate, copy_tile, reinterpret
from nvfp4.spec.swizzle import TILE_ROWS

BK = gl.constexpr(K_GROUP)
"""Elements of K a step."""

ROWS = gl.constexpr(HOPPER_BN // 2)
"""Rows of weights a consumer, as many as one wgmma has."""

WORDS = gl.constexpr(K_GROUP // 4)
BLOCKS = gl.constexpr(K_GROUP // 16)
HALF = gl.constexpr(K_GROUP // 2)
BN = gl.constexpr(HOPPER_BN)
"""Rows of weights a program's tile: two consumers'. As many have their scales in one tile of the
swizzled layout, 4 bytes a row for each 64 elements of K.
"""

QUADS = gl.constexpr(HOPPER_BN * K_GROUP // 64)
"""Such four bytes a step."""

ODD_PTX = gl.constexpr(planes_ptx(True, "$0", "$1", "$2", "$3"))
EVEN_PTX = gl.constexpr(planes_ptx(False, "$0", "$1", "$2", "$3"))
UNSCALE = gl.constexpr(floats.E2M1_F16_SCALE.value**2)

FIRST_REGISTERS = {1: 168, 2: 80}
"""Of a thread when a program starts, by how many programs share an SM's. Three groups of four warps
then divide them otherwise.
"""


@constexpr_function
def registers_of_roles(PER_SM):
    """The second consumer's, and either copier's; the first consumer has what is left."""
    return [232, 40, 40] if PER_SM == 1 else [104, 24, 24]


# ---- layouts --------------------------------------------------------------------------------

A_SHARED = gl.constexpr(gl.NVMMASharedLayout(128, 16, rank=2))
WORDS_SHARED = gl.constexpr(gl.NVMMASharedLayout(64, 16, rank=2))
SCALES_SHARED = gl.constexpr(gl.NVMMASharedLayout(0, 32, rank=2))


@constexpr_function
def sums_layout(BM):
    """[ROWS, BM]"""
    return gl.NVMMADistributedLayout([3, 0], [4, 1], [16, BM, 16])


SCALES_BYTES = gl.constexpr(  # [BN, BLOCKS], swizzled as the format has them
    gl.SharedLinearLayout(
        [[0, 1], [0, 2], [32, 0], [64, 0], [1, 0], [2, 0], [4, 0], [8, 0], [16, 0], [0, 4]]
    )
)

# A consumer's words [ROWS, WORDS], as wgmma wants its left operand in registers, in words for
# elements. A thread so has, of each plane of nibbles that it decodes, what it multiplies.
_REGISTERS = [[0, 1], [8, 0], [0, 8], [0, 16]]
_LANES = [[0, 2], [0, 4], [1, 0], [2, 0], [4, 0]]
_WARPS = [[16, 0], [32, 0]]
WORDS_LAYOUT = gl.constexpr(
    gl.DistributedLinearLayout(_REGISTERS, _LANES, _WARPS, [], [HOPPER_BN // 2, K_GROUP // 4])
)


def _blocks_apart(bases):
    return [[row, word // 4, word % 4] for row, word in bases]


BLOCKS_LAYOUT = gl.constexpr(
    gl.DistributedLinearLayout(
        *map(_blocks_apart, (_REGISTERS, _LANES, _WARPS)), [], [HOPPER_BN // 2, K_GROUP // 16, 4]
    )
)


# ---- what is copied from --------------------------------------------------------------------


class Operands(NamedTuple):
    """What is copied to shared memory, told to the tensor memory accelerator."""

    a: TensorDescriptor
    words: TensorDescriptor
    scales: TensorDescriptor


def describe(a: Tensor, words: Tensor, scales: Tensor, config: HopperConfig) -> Operands:
    """a float16 [M, K] decoded, words [N, K/4], scales as bytes [Np, Kp], swizzled."""
    quads = scales.view(torch.int32).view(scales.shape[0] // TILE_ROWS, -1)
    return Operands(
        TensorDescriptor.from_tensor(a, [config.BM, BK.value], A_SHARED.value),
        TensorDescriptor.from_tensor(words, [BN.value, WORDS.value], WORDS_SHARED.value),
        TensorDescriptor.from_tensor(quads, [1, QUADS.value], SCALES_SHARED.value),
    )


# ---- waiting for each other -----------------------------------------------------------------


@aggregate
class Ring:
    """Slots of shared memory that are filled and emptied in turn, a power of two of them. Places
    are counted on: they tell the slot, and by which phase its barriers are waited for.
    """

    full: gl.shared_memory_descriptor
    empty: gl.shared_memory_descriptor
    slots: gl.constexpr

    @constexpr_function
    def __init__(self, full, empty, slots):
        self.full = full
        self.empty = empty
        self.slots = gl.constexpr(slots)

    @gluon.jit
    def slot(self, place):
        return (place % self.slots).to(gl.int32)

    @gluon.jit
    def phase(self, place):
        return (place // self.slots % 2).to(gl.int32)

    @gluon.jit
    def await_empty(self, place):
        """The barrier that is to tell when it is full again."""
        mbarrier.wait(self.empty.index(self.slot(place)), self.phase(place) ^ 1)
        return self.full.index(self.slot(place))

    @gluon.jit
    def await_full(self, place):
        mbarrier.wait(self.full.index(self.slot(place)), self.phase(place))
        return self.slot(place)

    @gluon.jit
    def release(self, place):
        mbarrier.arrive(self.empty.index(self.slot(place)), count=1)


@gluon.jit
def first_place():
    return gl.to_tensor(0).to(gl.uint32)


@gluon.jit
def _barriers(N: gl.constexpr, COUNT: gl.constexpr):
    barriers = gl.allocate_shared_memory(gl.int64, [N, 1], mbarrier.MBarrierLayout())
    for i in gl.static_range(N):
        mbarrier.init(barriers.index(i), count=COUNT)
    return barriers


@aggregate
class Pipeline:
    """A program's shared memory: a ring of activations and one of weights, a step in each slot."""

    a: gl.shared_memory_descriptor
    words: gl.shared_memory_descriptor
    scales: gl.shared_memory_descriptor
    a_ring: Ring
    b_ring: Ring
    turns: gl.shared_memory_descriptor

    @constexpr_function
    def __init__(self, a, words, scales, a_ring, b_ring, turns):
        self.a = a
        self.words = words
        self.scales = scales
        self.a_ring = a_ring
        self.b_ring = b_ring
        self.turns = turns


@gluon.jit
def pipeline(BM: gl.constexpr, A_SLOTS: gl.constexpr, B_SLOTS: gl.constexpr):
    return Pipeline(
        gl.allocate_shared_memory(gl.float16, [A_SLOTS, BM, BK], A_SHARED),
        gl.allocate_shared_memory(gl.uint16, [B_SLOTS, BN, WORDS], WORDS_SHARED),
        gl.allocate_shared_memory(gl.int32, [B_SLOTS, 1, QUADS], SCALES_SHARED),
        Ring(_barriers(A_SLOTS, 1), _barriers(A_SLOTS, 2), A_SLOTS),
        Ring(_barriers(B_SLOTS, 1), _barriers(B_SLOTS, 2), B_SLOTS),
        _barriers(2, 1),
    )


@gluon.jit
def await_previous():
    """As gemm.await_previous."""
    wait: gl.constexpr = "griddepcontrol.wait; griddepcontrol.launch_dependents; mov.b32 $0, 0;"
    gl.inline_asm_elementwise(wait, "=r", [], dtype=gl.int32, is_pure=False, pack=1)


# ---- roles ----------------------------------------------------------------------------------


@gluon.jit
def copy_activations(pipe, a, place, row, begin, count):
    """Rows [BM] of A from `row` on, steps begin .. begin + count."""
    for step in range(begin, begin + count):
        full = pipe.a_ring.await_empty(place)
        mbarrier.expect(full, a.block_type.nbytes)
        copy_tile(a, [row, step * BK], full, pipe.a.index(pipe.a_ring.slot(place)))
        place += 1
    return place


@gluon.jit
def copy_weights(pipe, words, scales, place, row, tile_row, begin, count):
    """Rows [BN] of words from `row` on, and of scales from tile `tile_row` on. Weights are known
    from the start: they may come before the kernel before this one has ended.
    """
    for step in range(begin, begin + count):
        full = pipe.b_ring.await_empty(place)
        mbarrier.expect(full, words.block_type.nbytes + scales.block_type.nbytes)
        slot = pipe.b_ring.slot(place)
        copy_tile(words, [row, step * WORDS], full, pipe.words.index(slot))
        copy_tile(scales, [tile_row, step * QUADS], full, pipe.scales.index(slot))
        place += 1
    return place


@gluon.jit
def _planes(words, sf, PTX: gl.constexpr, BM: gl.constexpr):
    """Two planes of nibbles, float16 [ROWS, HALF] as wgmma takes them: half of gemm.decode's."""
    lower, upper = gl.inline_asm_elementwise(
        PTX,
        "=&r,=&r,r,r",
        [words, sf],
        dtype=(gl.float16, gl.float16),
        is_pure=True,
        pack=2,
    )
    planes = gl.join(lower, upper).reshape([ROWS, WORDS, 2]).permute([0, 2, 1])
    operand: gl.constexpr = gl.DotOperandLayout(0, sums_layout(BM), 2)
    return gl.convert_layout(planes.reshape([ROWS, HALF]), operand, assert_trivial=True)


@gluon.jit
def decode(pipe, slot, C: gl.constexpr, BM: gl.constexpr):
    """Consumer C's rows of a step, in gemm.decode's order: two float16 [ROWS, HALF]."""
    words = pipe.words.index(slot).slice(C * ROWS, ROWS).load(WORDS_LAYOUT)
    words = words.reshape([ROWS, BLOCKS, 4])
    scales = reinterpret(pipe.scales.index(slot), gl.uint8, [BN, BLOCKS], SCALES_BYTES)
    sf = scales.slice(C * ROWS, ROWS).load(gl.SliceLayout(2, BLOCKS_LAYOUT))
    sf = gl.expand_dims(sf.to(gl.float8e4nv, bitcast=True).to(gl.float16), 2)
    words, sf = gl.broadcast(gl.convert_layout(words, BLOCKS_LAYOUT, assert_trivial=True), sf)
    return _planes(words, sf, ODD_PTX, BM), _planes(words, sf, EVEN_PTX, BM)


@gluon.jit
def multiply(pipe, place, count, C: gl.constexpr, BM: gl.constexpr, PER_SM: gl.constexpr):
    """Rows [BM] of A times consumer C's of B, over `count` steps of K from `place` in the rings on:
    float32 [ROWS, BM].
    """
    FIRST: gl.constexpr = 1 - C  # consumer 0's: before it nobody had a turn
    TURNS: gl.constexpr = PER_SM == 1  # else another program decodes while this one multiplies
    acc = gl.full([ROWS, BM], 0.0, gl.float32, sums_layout(BM))
    for _ in range(count):
        first, second = decode(pipe, pipe.b_ring.await_full(place), C, BM)
        fence_async_shared()  # what is in flight to registers would else be overwritten by a copy
        pipe.b_ring.release(place)
        a = pipe.a.index(pipe.a_ring.await_full(place)).permute([1, 0])
        if TURNS:
            mbarrier.wait(pipe.turns.index(C), (place % 2 ^ FIRST).to(gl.int32))
        acc = warpgroup_mma(first, a.slice(0, HALF), acc, is_async=True)
        acc = warpgroup_mma(second, a.slice(HALF, HALF), acc, is_async=True)
        if TURNS:
            mbarrier.arrive(pipe.turns.index(1 - C), count=1)
        acc, first, second = warpgroup_mma_wait(0, [acc, first, second])
        pipe.a_ring.release(place)
        place += 1
    return acc * UNSCALE
