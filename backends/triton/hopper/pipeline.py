"""The GEMM's warp-specialized pipeline on Hopper (sm_90), in Gluon, Triton's lower level.

Two producer warps copy by TMA to shared memory: one the weights, one the activations. Two consumer
warp groups each decode 64 rows of weights in registers and multiply them. With one program on an SM
the consumers ping-pong: one decodes while the other has the tensor cores. With two programs on an
SM, each with fewer registers, the other program fills the tensor cores instead.

Products and the order of their sums are those of gemm/multiply.py, so the bits are the same.

A step issues its wgmmas together, with no other instruction between them. Otherwise ptxas makes
each wgmma wait for the one before it.

Names: C is the consumer (0 or 1), BM the tile's tokens, BN its weight rows, BK a step's elements.
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
from nvfp4.spec.format import BLOCK
from nvfp4.spec.swizzle import TILE_BLOCKS, TILE_ROWS

BK = gl.constexpr(K_GROUP)
"""Elements of K in a step."""

ROWS = gl.constexpr(HOPPER_BN // 2)
"""Weight rows of one consumer: the M of one wgmma."""

WORDS = gl.constexpr(K_GROUP // 4)
BLOCKS = gl.constexpr(K_GROUP // BLOCK)
HALF = gl.constexpr(K_GROUP // 2)
BN = gl.constexpr(HOPPER_BN)
"""Weight rows of a tile, those of two consumers. Their scales are whole swizzled scale tiles."""

SCALE_QUADS = gl.constexpr(HOPPER_BN * BLOCKS.value // TILE_BLOCKS)
"""Groups of four scale bytes in a step: a scale tile has one for each row."""

ODD_PTX = gl.constexpr(planes_ptx(True, "$0", "$1", "$2", "$3"))
EVEN_PTX = gl.constexpr(planes_ptx(False, "$0", "$1", "$2", "$3"))
UNSCALE = gl.constexpr(floats.E2M1_F16_SCALE.value**2)

LAUNCH_MAXNREG = {1: 168, 2: 80}
"""A thread's registers at launch, by the programs on an SM (maxnreg).

The three warp groups then redistribute them by role (role_registers).
"""


@constexpr_function
def role_registers(PER_SM):
    """Registers a thread of the second consumer, the weights' and the activations' producer.

    The first consumer has what is left.
    """
    return [232, 40, 40] if PER_SM == 1 else [104, 24, 24]


# ---- layouts --------------------------------------------------------------------------------

A_SHARED = gl.constexpr(gl.NVMMASharedLayout(128, 16, rank=2))
WORDS_SHARED = gl.constexpr(gl.NVMMASharedLayout(64, 16, rank=2))
SCALES_SHARED = gl.constexpr(gl.NVMMASharedLayout(0, 32, rank=2))


@constexpr_function
def accumulator_layout(BM):
    """The wgmma layout of one consumer's accumulator [ROWS, BM]."""
    return gl.NVMMADistributedLayout([3, 0], [4, 1], [16, BM, 16])


SCALES_LAYOUT = gl.constexpr(  # [BN, BLOCKS] in shared memory, in the format's swizzled order
    gl.SharedLinearLayout(
        [[0, 1], [0, 2], [32, 0], [64, 0], [1, 0], [2, 0], [4, 0], [8, 0], [16, 0], [0, 4]]
    )
)

# A consumer's words [ROWS, WORDS], laid out as wgmma's left operand in registers, one word for each
# element. Each plane of nibbles that a thread decodes is then in the place that wgmma reads.
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
        *map(_blocks_apart, (_REGISTERS, _LANES, _WARPS)), [], [HOPPER_BN // 2, K_GROUP // BLOCK, 4]
    )
)


# ---- TMA descriptors ------------------------------------------------------------------------


class Operands(NamedTuple):
    """TMA descriptors of everything that the producers copy to shared memory."""

    a: TensorDescriptor
    words: TensorDescriptor
    scales: TensorDescriptor


def make_descriptors(a: Tensor, words: Tensor, scales: Tensor, config: HopperConfig) -> Operands:
    """Describe a float16 [M, K] (decoded), words uint16 [N, K/4] and scales uint8 [Np, Kp]
    (swizzled).
    """
    quads = scales.view(torch.int32).view(scales.shape[0] // TILE_ROWS, -1)
    return Operands(
        TensorDescriptor.from_tensor(a, [config.BM, BK.value], A_SHARED.value),
        TensorDescriptor.from_tensor(words, [BN.value, WORDS.value], WORDS_SHARED.value),
        TensorDescriptor.from_tensor(quads, [1, SCALE_QUADS.value], SCALES_SHARED.value),
    )


# ---- stages and their barriers --------------------------------------------------------------


@aggregate
class Ring:
    """A ring of shared-memory stages, a power of two of them, with full and empty barriers.

    `iteration` counts steps from the program's start. It gives the stage, and the phase in which
    the stage's barriers are waited for.
    """

    full: gl.shared_memory_descriptor
    empty: gl.shared_memory_descriptor
    stages: gl.constexpr

    @constexpr_function
    def __init__(self, full, empty, stages):
        self.full = full
        self.empty = empty
        self.stages = gl.constexpr(stages)

    @gluon.jit
    def stage(self, iteration):
        """The stage of an iteration."""
        return (iteration % self.stages).to(gl.int32)

    @gluon.jit
    def phase(self, iteration):
        """The phase of an iteration: 0 or 1, the parity of the stage's uses before it."""
        return (iteration // self.stages % 2).to(gl.int32)

    @gluon.jit
    def wait_empty(self, iteration):
        """Wait until the stage may be overwritten; return its full barrier."""
        mbarrier.wait(self.empty.index(self.stage(iteration)), self.phase(iteration) ^ 1)
        return self.full.index(self.stage(iteration))

    @gluon.jit
    def wait_full(self, iteration):
        """Wait until the stage's copies have arrived; return the stage."""
        mbarrier.wait(self.full.index(self.stage(iteration)), self.phase(iteration))
        return self.stage(iteration)

    @gluon.jit
    def release(self, iteration):
        """Say that this consumer has read the stage."""
        mbarrier.arrive(self.empty.index(self.stage(iteration)), count=1)


@gluon.jit
def first_iteration():
    """The iteration that a program starts from: 0, as uint32."""
    return gl.to_tensor(0).to(gl.uint32)


@constexpr_function
def alternates(PER_SM):
    """Whether the consumers take turns; else another program decodes while this one multiplies."""
    return PER_SM == 1


@gluon.jit
def _barriers(N: gl.constexpr, COUNT: gl.constexpr, USED: gl.constexpr = True):
    """Allocate N barriers. Those not USED stay plain memory, which Triton gives to others."""
    barriers = gl.allocate_shared_memory(gl.int64, [N, 1], mbarrier.MBarrierLayout())
    if USED:
        for i in gl.static_range(N):
            mbarrier.init(barriers.index(i), count=COUNT)
    return barriers


@aggregate
class Pipeline:
    """A program's shared memory: a ring of activations and one of weights, one step a stage.

    ping_pong has a barrier for each consumer, which tells it that the tensor cores are its own.
    """

    a: gl.shared_memory_descriptor
    words: gl.shared_memory_descriptor
    scales: gl.shared_memory_descriptor
    a_ring: Ring
    b_ring: Ring
    ping_pong: gl.shared_memory_descriptor

    @constexpr_function
    def __init__(self, a, words, scales, a_ring, b_ring, ping_pong):
        self.a = a
        self.words = words
        self.scales = scales
        self.a_ring = a_ring
        self.b_ring = b_ring
        self.ping_pong = ping_pong


@gluon.jit
def pipeline(
    BM: gl.constexpr, A_STAGES: gl.constexpr, B_STAGES: gl.constexpr, PER_SM: gl.constexpr
):
    """Allocate a program's shared memory and initialize its barriers."""
    return Pipeline(
        gl.allocate_shared_memory(gl.float16, [A_STAGES, BM, BK], A_SHARED),
        gl.allocate_shared_memory(gl.uint16, [B_STAGES, BN, WORDS], WORDS_SHARED),
        gl.allocate_shared_memory(gl.int32, [B_STAGES, 1, SCALE_QUADS], SCALES_SHARED),
        Ring(_barriers(A_STAGES, 1), _barriers(A_STAGES, 2), A_STAGES),
        Ring(_barriers(B_STAGES, 1), _barriers(B_STAGES, 2), B_STAGES),
        _barriers(2, 1, alternates(PER_SM)),
    )


@gluon.jit
def wait_for_previous_kernel():
    """Wait for the kernel before, then let the next one start: device/pdl.py in Gluon."""
    wait: gl.constexpr = "griddepcontrol.wait; griddepcontrol.launch_dependents; mov.b32 $0, 0;"
    gl.inline_asm_elementwise(wait, "=r", [], dtype=gl.int32, is_pure=False, pack=1)


# ---- roles ----------------------------------------------------------------------------------


@gluon.jit
def copy_activations(pipe, a, iteration, row, begin, count):
    """Copy rows [row, row + BM) of A, `count` steps from step `begin` on; return the iteration."""
    for step in range(begin, begin + count):
        full = pipe.a_ring.wait_empty(iteration)
        mbarrier.expect(full, a.block_type.nbytes)
        copy_tile(a, [row, step * BK], full, pipe.a.index(pipe.a_ring.stage(iteration)))
        iteration += 1
    return iteration


@gluon.jit
def copy_weights(pipe, words, scales, iteration, row, tile_row, begin, count):
    """Copy rows [row, row + BN) of words and the scale tiles of tile row `tile_row`.

    Weights do not depend on the kernel before, so these copies may start before it has ended.
    """
    for step in range(begin, begin + count):
        full = pipe.b_ring.wait_empty(iteration)
        mbarrier.expect(full, words.block_type.nbytes + scales.block_type.nbytes)
        stage = pipe.b_ring.stage(iteration)
        copy_tile(words, [row, step * WORDS], full, pipe.words.index(stage))
        copy_tile(scales, [tile_row, step * SCALE_QUADS], full, pipe.scales.index(stage))
        iteration += 1
    return iteration


@gluon.jit
def _planes(words, sf, PTX: gl.constexpr, BM: gl.constexpr):
    """Decode two planes of nibbles to a wgmma operand, float16 [ROWS, HALF]."""
    lower, upper = gl.inline_asm_elementwise(
        PTX,
        "=&r,=&r,r,r",
        [words, sf],
        dtype=(gl.float16, gl.float16),
        is_pure=True,
        pack=2,
    )
    planes = gl.join(lower, upper).reshape([ROWS, WORDS, 2]).permute([0, 2, 1])
    operand: gl.constexpr = gl.DotOperandLayout(0, accumulator_layout(BM), 2)
    return gl.convert_layout(planes.reshape([ROWS, HALF]), operand, assert_trivial=True)


@gluon.jit
def decode(pipe, stage, C: gl.constexpr, BM: gl.constexpr):
    """Decode consumer C's rows of a stage to two float16 [ROWS, HALF], in gemm/decode's order."""
    words = pipe.words.index(stage).slice(C * ROWS, ROWS).load(WORDS_LAYOUT)
    words = words.reshape([ROWS, BLOCKS, 4])
    scales = reinterpret(pipe.scales.index(stage), gl.uint8, [BN, BLOCKS], SCALES_LAYOUT)
    sf = scales.slice(C * ROWS, ROWS).load(gl.SliceLayout(2, BLOCKS_LAYOUT))
    sf = gl.expand_dims(sf.to(gl.float8e4nv, bitcast=True).to(gl.float16), 2)
    words, sf = gl.broadcast(gl.convert_layout(words, BLOCKS_LAYOUT, assert_trivial=True), sf)
    return _planes(words, sf, ODD_PTX, BM), _planes(words, sf, EVEN_PTX, BM)


@gluon.jit
def multiply(pipe, iteration, count, C: gl.constexpr, BM: gl.constexpr, PER_SM: gl.constexpr):
    """Multiply rows [BM] of A by consumer C's rows of B, over `count` steps from `iteration` on.

    Returns float32 [ROWS, BM].
    """
    FIRST: gl.constexpr = 1 - C  # consumer 0 begins: its first wait must not block
    PING_PONG: gl.constexpr = alternates(PER_SM)
    acc = gl.full([ROWS, BM], 0.0, gl.float32, accumulator_layout(BM))
    for _ in range(count):
        first, second = decode(pipe, pipe.b_ring.wait_full(iteration), C, BM)
        # Without the fence a later TMA copy could overwrite what is still on its way to registers.
        fence_async_shared()
        pipe.b_ring.release(iteration)
        a = pipe.a.index(pipe.a_ring.wait_full(iteration)).permute([1, 0])
        if PING_PONG:
            mbarrier.wait(pipe.ping_pong.index(C), (iteration % 2 ^ FIRST).to(gl.int32))
        acc = warpgroup_mma(first, a.slice(0, HALF), acc, is_async=True)
        acc = warpgroup_mma(second, a.slice(HALF, HALF), acc, is_async=True)
        if PING_PONG:
            mbarrier.arrive(pipe.ping_pong.index(1 - C), count=1)
        acc, first, second = warpgroup_mma_wait(0, [acc, first, second])
        pipe.a_ring.release(iteration)
        iteration += 1
    return acc * UNSCALE
