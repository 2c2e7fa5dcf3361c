"""Routing: each choice's row among its expert's (spec/grouped.py), a counting sort by expert.

An expert's rows are in the order of the choices. One program sorts a single chunk of ids. With more
chunks, a first kernel counts each chunk's ids, and each program then adds the counts itself.
"""

import torch
import triton
import triton.language as tl
from torch import Tensor

from nvfp4.backends.triton.device.groups import experts_vector
from nvfp4.backends.triton.runtime.launch import Launch, cdiv, next_power_of_2


@triton.jit
def local_expert(ids, at, inside, expert_offset, E):
    """The local expert of the ids at `at`: int32, E for other ranks' and where not `inside`."""
    expert = tl.load(ids + at, mask=inside, other=-1).to(tl.int64) - expert_offset
    return tl.where(inside & (expert >= 0) & (expert < E), expert, E).to(tl.int32)


@triton.jit(do_not_specialize=["n", "expert_offset"])
def _count_kernel(ids, counts, n, expert_offset, E, CHUNK: tl.constexpr, EXPERTS: tl.constexpr):
    """Count each expert's ids in a chunk: counts int32 [chunks, EXPERTS]."""
    chunk = tl.program_id(0)
    at = chunk * CHUNK + tl.arange(0, CHUNK)
    counted = tl.histogram(local_expert(ids, at, at < n, expert_offset, E), EXPERTS)
    tl.store(counts + chunk * EXPERTS + tl.arange(0, EXPERTS), counted)


@triton.jit(do_not_specialize=["n", "expert_offset", "chunks"])
def _place_kernel(
    ids, counts, offsets, positions, n, expert_offset, E, chunks,
    ONE: tl.constexpr, CHUNK: tl.constexpr, PART: tl.constexpr, EXPERTS: tl.constexpr,
):  # fmt: skip
    chunk = tl.program_id(0)
    order = tl.arange(0, CHUNK)
    at = chunk * CHUNK + order
    expert = local_expert(ids, at, at < n, expert_offset, E)
    vector = tl.arange(0, EXPERTS)
    before = tl.zeros((EXPERTS,), tl.int32)  # in earlier chunks
    if ONE:
        total = tl.histogram(expert, EXPERTS)
    else:
        total = tl.zeros((EXPERTS,), tl.int32)
        for c in range(chunks):
            counted = tl.load(counts + c * EXPERTS + vector)
            before += tl.where(c < chunk, counted, 0)
            total += counted
    begin = tl.cumsum(total, 0) - total
    if chunk == 0:
        tl.store(offsets + vector, begin, mask=vector <= E)

    rank = tl.gather(begin + before, expert, 0)
    for start in range(0, CHUNK, PART):  # count the same expert's earlier ids in this chunk
        part = start + tl.arange(0, PART)
        at_part = chunk * CHUNK + part
        other = local_expert(ids, at_part, at_part < n, expert_offset, E)
        same = (other[None, :] == expert[:, None]) & (part[None, :] < order[:, None])
        rank += tl.sum(same.to(tl.int32), axis=1)
    tl.store(positions + at, tl.where(expert < E, rank, -1), mask=at < n)


def plan(
    topk_ids: Tensor, expert_offset: int, offsets: Tensor, positions: Tensor
) -> tuple[Launch, ...]:
    """Plan topk_ids int32 or int64 [M, top_k] to offsets int32 [E+1] and positions int32
    [M, top_k].
    """
    n, experts = topk_ids.numel(), offsets.numel() - 1
    # Every program adds the counts of all chunks, so there should be few chunks.
    chunk = 256 if n <= 8192 else 1024
    chunks = cdiv(n, chunk)
    if chunks == 1:
        chunk = max(32, next_power_of_2(n))
    vector = experts_vector(experts)
    sizes = {"CHUNK": chunk, "EXPERTS": vector}
    first: tuple[Launch, ...] = ()
    counts = None
    if chunks > 1:
        counts = torch.empty(chunks, vector, dtype=torch.int32, device=topk_ids.device)
        args = (topk_ids, counts, n, expert_offset, experts)
        first = (Launch(_count_kernel, (chunks,), args, sizes),)
    place = Launch(
        _place_kernel,
        (chunks,),
        (topk_ids, counts, offsets, positions, n, expert_offset, experts, chunks),
        {"ONE": chunks == 1, "PART": 32, **sizes},
        num_warps=4 if chunk <= 256 else 8,
    )
    return (*first, place)
