"""The PTX that the kernels issue by name: mbarriers, TMA, tcgen05, memory by address; floats.py
has the arithmetic.

Shared and tensor memory are addressed by 32-bit integers, as in PTX. What one thread issues for its
warp is `elected`: the asm block carries its own elect.sync, so that for ptxas the warp stays
converged and the operands stay in uniform registers.

Names and operands are the PTX ISA's. CuTe DSL's own wrappers are used where they say the same
thing; those for TMA and the MMA work on layouts and atoms, and cost 10 to 30 instructions a step.
"""

from collections.abc import Sequence
from typing import Any

import cutlass.cute as cute
from cutlass import Float32, Int16, Int32, Int64, Uint32
from cutlass.cutlass_dsl import dsl_user_op

from nvfp4.backends.cutedsl.runtime import compat

_TYPES = {Int16: ("h", "i16"), Int32: ("r", "i32"), Uint32: ("r", "i32")}
_TYPES |= {Int64: ("l", "i64"), Float32: ("f", "f32")}


def asm(text: str, operands: Sequence[Any], results: Sequence[Any] = (), loc=None, ip=None) -> Any:
    """Emit a volatile asm block; in `text`, $0.. are the results and then the operands."""
    constraints = ["=" + _TYPES[result][0] for result in results]
    constraints += [_TYPES[type(operand)][0] for operand in operands]
    found = compat.inline_asm(
        text,
        ",".join(constraints),
        [operand.ir_value(loc=loc, ip=ip) for operand in operands],
        [_TYPES[result][1] for result in results],
        loc,
        ip,
    )
    values = tuple(result(value) for result, value in zip(results, found, strict=True))
    return values if len(values) > 1 else values[0] if values else None


def _elected(instruction: str) -> str:
    return f"{{\n.reg .pred elected;\nelect.sync _|elected, -1;\n@elected {instruction}\n}}"


# mbarriers


@dsl_user_op
def mbarrier_init(barrier: Int32, arrivals: int, *, loc=None, ip=None) -> None:
    asm(f"mbarrier.init.shared::cta.b64 [$0], {arrivals};", [barrier], (), loc, ip)


def _wait(semantics: str) -> str:
    return f"""{{
.reg .pred done;
WAIT:
mbarrier.try_wait.parity{semantics}.shared::cta.b64 done, [$0], $1;
@!done bra WAIT;
}}"""


@dsl_user_op
def mbarrier_wait(barrier: Int32, parity: Int32, *, loc=None, ip=None) -> None:
    """Until the phase of this parity has completed (parity 1 of a fresh barrier has)."""
    asm(_wait(""), [barrier, parity], (), loc, ip)


@dsl_user_op
def mbarrier_wait_relaxed(barrier: Int32, parity: Int32, *, loc=None, ip=None) -> None:
    """mbarrier_wait for arrivals of other CTAs, without an acquire: a fence follows."""
    asm(_wait(".relaxed.cluster"), [barrier, parity], (), loc, ip)


@dsl_user_op
def mbarrier_expect_tx(barrier: Int32, bytes_: int, *, loc=None, ip=None) -> None:
    """One arrival (elected), and `bytes_` that must come before the phase completes."""
    text = _elected(f"mbarrier.arrive.expect_tx.shared::cta.b64 _, [$0], {bytes_};")
    asm(text, [barrier], (), loc, ip)


@dsl_user_op
def mbarrier_arrive(barrier: Int32, *, loc=None, ip=None) -> None:
    """One arrival (elected), at this CTA's barrier."""
    asm(_elected("mbarrier.arrive.shared::cta.b64 _, [$0];"), [barrier], (), loc, ip)


@dsl_user_op
def mbarrier_arrive_cluster(barrier: Int32, *, loc=None, ip=None) -> None:
    """One relaxed arrival (elected) at a barrier of the cluster, by its shared::cluster address.

    A fence precedes it. `.release.cluster` would instead wait for all of the thread's
    accesses, those to global memory included (MEMBAR.ALL.GPU).
    """
    text = _elected("mbarrier.arrive.relaxed.cluster.shared::cluster.b64 _, [$0];")
    asm(text, [barrier], (), loc, ip)


@dsl_user_op
def release_own_shared(*, loc=None, ip=None) -> None:
    """Release the thread's accesses to its CTA's shared memory to the cluster, with the next
    relaxed arrival.
    """
    asm("fence.release.sync_restrict::shared::cta.cluster;", [], (), loc, ip)


@dsl_user_op
def acquire_shared(*, loc=None, ip=None) -> None:
    """Acquire, after a relaxed wait, what CTAs of the cluster released of their shared memory."""
    asm("fence.acquire.sync_restrict::shared::cluster.cluster;", [], (), loc, ip)


@dsl_user_op
def map_to_cta(address: Int32, rank: Int32, *, loc=None, ip=None) -> Int32:
    """This CTA's shared address -> the same offset in CTA `rank` of the cluster."""
    return asm("mapa.shared::cluster.u32 $0, $1, $2;", [address, rank], (Int32,), loc, ip)


# TMA


@dsl_user_op
def tensor_map(atom: cute.CopyAtom, *, loc=None, ip=None) -> Int64:
    """The address of the tensor map that a TMA atom carries, in the kernel's parameters."""
    return compat.tensor_map_address(atom, loc, ip)


@dsl_user_op
def tma_load(
    target: Int32,
    source: Int64,
    coordinates: Sequence[Int32],
    barrier: Int32,
    cta_group: int,
    mask: Int32 | None = None,
    *,
    loc=None,
    ip=None,
) -> None:
    """Load a box of tensor map `source` to shared memory (elected); the bytes complete on barrier.

    With a mask, to that address of every CTA in it, each completing at the barrier's offset.
    With cta_group 2, a barrier address with its peer bit cleared is the pair's leader's.
    """
    rank = len(coordinates)
    box = ", ".join(f"${i + 3}" for i in range(rank))
    group = ".cta_group::2" if cta_group == 2 else ""
    text = f"cp.async.bulk.tensor.{rank}d.shared::cluster.global.tile.mbarrier::complete_tx::bytes"
    operands = [target, source, barrier, *coordinates]
    if mask is None:
        text += f"{group} [$0], [$1, {{{box}}}], [$2];"
    else:
        text += f".multicast::cluster{group} [$0], [$1, {{{box}}}], [$2], ${rank + 3};"
        operands.append(Int16(mask))
    asm(_elected(text), operands, (), loc, ip)


@dsl_user_op
def tma_prefetch(source: Int64, coordinates: Sequence[Int32], *, loc=None, ip=None) -> None:
    """Bring a box of a tensor map to L2 (elected)."""
    rank = len(coordinates)
    box = ", ".join(f"${i + 1}" for i in range(rank))
    text = f"cp.async.bulk.prefetch.tensor.{rank}d.L2.global.tile [$0, {{{box}}}];"
    asm(_elected(text), [source, *coordinates], (), loc, ip)


@dsl_user_op
def tma_store(target: Int64, coordinates: Sequence[Int32], source: Int32, *, loc=None, ip=None):
    """Store a box from shared memory (elected), clipped to the tensor."""
    rank = len(coordinates)
    box = ", ".join(f"${i + 2}" for i in range(rank))
    text = f"cp.async.bulk.tensor.{rank}d.global.shared::cta.tile.bulk_group"
    text += f" [$1, {{{box}}}], [$0];"
    asm(_elected(text), [source, target, *coordinates], (), loc, ip)


# tcgen05


@dsl_user_op
def tmem_alloc(holder: Int32, columns: int, cta_group: int, *, loc=None, ip=None) -> None:
    """Allocate (one whole warp) and write the address to shared memory at `holder`.

    The right to allocate goes to the next CTA on the SM at once.
    """
    group = f"cta_group::{cta_group}.sync.aligned"
    text = f"tcgen05.alloc.{group}.shared::cta.b32 [$0], {columns};\n"
    text += f"tcgen05.relinquish_alloc_permit.{group};"
    asm(text, [holder], (), loc, ip)


@dsl_user_op
def tmem_free(tmem: Int32, columns: int, cta_group: int, *, loc=None, ip=None) -> None:
    """Deallocate (the warp that allocated)."""
    name = f"tcgen05.dealloc.cta_group::{cta_group}.sync.aligned.b32"
    asm(f"{name} $0, {columns};", [tmem], (), loc, ip)


@dsl_user_op
def copy_scales(tmem: Int32, low: Int32, high: int, cta_group: int, *, loc=None, ip=None) -> None:
    """512 bytes of scales, shared (descriptor {low, high}) -> 4 columns of tensor memory (elected),
    the same in each quarter of 32 lanes.
    """
    text = f"""{{
.reg .pred elected;
.reg .b64 source;
mov.b64 source, {{$1, {high}}};
elect.sync _|elected, -1;
@elected tcgen05.cp.cta_group::{cta_group}.32x128b.warpx4 [$0], source;
}}"""
    asm(text, [tmem, low], (), loc, ip)


@dsl_user_op
def mma(
    acc: Int32,
    a_low: Int32,
    b_low: Int32,
    high: int,
    instruction: Int32 | int,
    a_scales: Int32,
    b_scales: Int32,
    accumulate: Int32,
    cta_group: int,
    *,
    loc=None,
    ip=None,
) -> None:
    """acc = A B^T (+ acc if accumulate), K = 64, E2M1 with a UE4M3 scale per 16 (elected).

    A and B by shared-memory descriptors {low, high}; acc and the scales in tensor memory.
    """
    text = f"""{{
.reg .pred elected, accumulate;
.reg .b64 a, b;
mov.b64 a, {{$1, {high}}};
mov.b64 b, {{$2, {high}}};
setp.ne.b32 accumulate, $6, 0;
elect.sync _|elected, -1;
@elected tcgen05.mma.cta_group::{cta_group}.kind::mxf4nvf4.block_scale.block16 [$0], a, b, $3, \
[$4], [$5], accumulate;
}}"""
    operands = [acc, a_low, b_low, Int32(instruction), a_scales, b_scales, accumulate]
    asm(text, operands, (), loc, ip)


@dsl_user_op
def commit(barrier: Int32, cta_group: int, mask: Int32 | None = None, *, loc=None, ip=None) -> None:
    """Arrive at barrier, in each CTA of the mask, when the MMAs and copies so far have completed
    (elected).
    """
    name = f"tcgen05.commit.cta_group::{cta_group}.mbarrier::arrive::one.shared::cluster"
    if mask is None:
        asm(_elected(f"{name}.b64 [$0];"), [barrier], (), loc, ip)
    else:
        text = _elected(f"{name}.multicast::cluster.b64 [$0], $1;")
        asm(text, [barrier, Int16(mask)], (), loc, ip)


@dsl_user_op
def tmem_load(tmem: Int32, columns: int, *, loc=None, ip=None) -> tuple[Float32, ...]:
    """`columns` float32 of the thread's lane (the whole warp), after tmem_wait."""
    registers = ", ".join(f"${i}" for i in range(columns))
    text = f"tcgen05.ld.sync.aligned.32x32b.x{columns}.b32 {{{registers}}}, [${columns}];"
    loaded = asm(text, [tmem], (Float32,) * columns, loc, ip)
    return loaded if columns > 1 else (loaded,)


@dsl_user_op
def tmem_load_16x256b(tmem: Int32, columns: int, *, loc=None, ip=None) -> tuple[Float32, ...]:
    """`columns` of 16 lanes (the whole warp), after tmem_wait: for each 8 columns, the thread's
    two, 2 (lane % 4) and the next, of row lane / 4, then of the row 8 further.
    """
    count = columns // 2
    registers = ", ".join(f"${i}" for i in range(count))
    text = f"tcgen05.ld.sync.aligned.16x256b.x{columns // 8}.b32 {{{registers}}}, [${count}];"
    return asm(text, [tmem], (Float32,) * count, loc, ip)


@dsl_user_op
def tmem_wait(*, loc=None, ip=None) -> None:
    """Until the warp's tmem_loads have arrived in their registers."""
    asm("tcgen05.wait::ld.sync.aligned;", [], (), loc, ip)


@dsl_user_op
def tmem_fence_before(*, loc=None, ip=None) -> None:
    """Order the thread's tcgen05 operations before an arrival that follows."""
    asm("tcgen05.fence::before_thread_sync;", [], (), loc, ip)


@dsl_user_op
def tmem_fence_after(*, loc=None, ip=None) -> None:
    """Order the thread's tcgen05 operations after a wait that precedes."""
    asm("tcgen05.fence::after_thread_sync;", [], (), loc, ip)


# memory by address


@dsl_user_op
def store_shared(address: Int32, values: Sequence[Any], offset: int = 0, *, loc=None, ip=None):
    """One to four 32-bit values."""
    vector = "" if len(values) == 1 else f".v{len(values)}"
    registers = ", ".join(f"${i + 1}" for i in range(len(values)))
    text = f"st.shared{vector}.b32 [$0+{offset}], {{{registers}}};"
    asm(text, [address, *values], (), loc, ip)


@dsl_user_op
def load_shared(
    address: Int32, count: int, type_: Any = Float32, offset: int = 0, *, loc=None, ip=None
) -> tuple[Any, ...]:
    """One, two or four 32-bit values."""
    vector = "" if count == 1 else f".v{count}"
    registers = ", ".join(f"${i}" for i in range(count))
    text = f"ld.shared{vector}.b32 {{{registers}}}, [${count}+{offset}];"
    loaded = asm(text, [address], (type_,) * count, loc, ip)
    return loaded if count > 1 else (loaded,)


@dsl_user_op
def store_matrices(address: Int32, words: Sequence[Int32], offset: int = 0, *, loc=None, ip=None):
    """Four 8x8 matrices of 16-bit elements (the whole warp): lane l holds the pair l % 4 of row
    l / 4 of each, and gives the address of row l % 8 of matrix l / 8.
    """
    text = f"stmatrix.sync.aligned.m8n8.x4.shared.b16 [$0+{offset}], {{$1, $2, $3, $4}};"
    asm(text, [address, *words], (), loc, ip)


@dsl_user_op
def load_cluster(address: Int32, offset: int = 0, *, loc=None, ip=None) -> Float32:
    """A float32 of any CTA of the cluster, by its shared::cluster address."""
    return asm(f"ld.shared::cluster.f32 $0, [$1+{offset}];", [address], (Float32,), loc, ip)


@dsl_user_op
def store_global(address: Int64, words: Sequence[Any], *, loc=None, ip=None) -> None:
    """One, two, four or eight 32-bit values, or one of 16 bits."""
    vector = "" if len(words) == 1 else f".v{len(words)}"
    bits = 16 if isinstance(words[0], Int16) else 32
    registers = ", ".join(f"${i + 1}" for i in range(len(words)))
    asm(f"st.global{vector}.b{bits} [$0], {{{registers}}};", [address, *words], (), loc, ip)
