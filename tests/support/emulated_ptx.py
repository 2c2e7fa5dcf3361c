"""Small PTX kernels for the emulator: what their tests need around a few instructions."""

import struct
from collections.abc import Mapping
from typing import Any

import torch

from nvfp4.emulator import Options, Report, encode_tensor_map, execute

HEAD = """
.version 8.8
.target sm_100a
.address_size 64
.extern .shared .align 1024 .b8 smem[];
"""
REGISTERS = """
.reg .b8 %b<8>; .reg .b16 %h<64>; .reg .b32 %r<128>; .reg .b64 %d<64>; .reg .pred %q<16>;
.reg .b32 %t, %s;
mov.u32 %t, %tid.x; mov.u32 %s, smem;
"""

# Parts of kernels. They keep off registers 0 to 89, but where they say so. The first bytes of
# shared memory hold an mbarrier and, from byte 16, what tcgen05.alloc writes.

ONE = "setp.eq.u32 %q14,%t,0;\n"
"""%q14: one thread, that for TMA and the MMA."""
INIT = "@%q14 mbarrier.init.shared.b64 [%s], 1; fence.mbarrier_init.release.cluster;\n"
READY = INIT + "bar.sync 0;\n"
WAIT = "{ WAIT: mbarrier.try_wait.parity.shared.b64 %q13, [%s], 0; @!%q13 bra WAIT; }\n"
AT = "add.u32 %r110,%s,1024;\n"
"""%r110: where the data stands in shared memory."""
LOAD = "cp.async.bulk.tensor.{}d.shared::cta.global.tile.mbarrier::complete_tx::bytes"
LOAD_BYTES = "cp.async.bulk.shared::cta.global.mbarrier::complete_tx::bytes"
STORED = "cp.async.bulk.commit_group; cp.async.bulk.wait_group 0;\n"
COPY_OUT = """mad.lo.u32 %r90,%t,16,%r110; mul.wide.u32 %d1,%t,16; add.s64 %d1,%d1,%out;
ld.shared.v4.b32 {%r91,%r92,%r93,%r94},[%r90]; st.global.v4.b32 [%d1],{%r91,%r92,%r93,%r94};\n"""
"""16 bytes a thread, from %r110 to out."""
FILL = """mul.lo.u32 %r91,%t,0x04040404; add.u32 %r91,%r91,0x03020100; mad.lo.u32 %r90,%t,4,%r110;
st.shared.b32 [%r90],%r91; fence.proxy.async.shared::cta; bar.warp.sync -1;\n"""
"""Byte i of the 128 from %r110 on becomes i."""
STORE = "mul.wide.u32 %d1,%t,4; add.s64 %d1,%d1,%out; st.global.b32 [%d1],%r0;\n"
"""%r0 of each thread of a CTA to out."""
OWN_STORE = """mov.u32 %r90,%ctaid.x; mov.u32 %r91,%ntid.x; mad.lo.u32 %r90,%r90,%r91,%t;
mul.wide.u32 %d1,%r90,4; add.s64 %d1,%d1,%out; st.global.b32 [%d1],%r0;\n"""
"""The same for the threads of all CTAs."""
PEERS = "barrier.cluster.arrive; barrier.cluster.wait;\n"
RANKS = "mov.u32 %r1,%cluster_ctarank; xor.b32 %r2,%r1,1;\n"
"""The CTA's rank in %r1, that of the other of two in %r2."""
ALL_RUN = "barrier.cluster.arrive.relaxed; barrier.cluster.wait;\n"
"""Each CTA knows that the others run, and nothing else of them."""
ALLOCATE = f"""{ALL_RUN}setp.lt.u32 %q15,%t,32; @!%q15 bra ALLOCATED;
tcgen05.alloc.cta_group::{{group}}.sync.aligned.shared::cta.b32 [%s+16], {{columns}};
tcgen05.relinquish_alloc_permit.cta_group::{{group}}.sync.aligned;
ALLOCATED: bar.sync 0; ld.shared.b32 %r100, [%s+16];\n"""
"""%r100: the first column."""
BEFORE = "tcgen05.fence::before_thread_sync;\n"
AFTER = "tcgen05.fence::after_thread_sync;\n"
FREE = f"""{BEFORE}bar.sync 0; {AFTER}@!%q15 bra FREED;
tcgen05.dealloc.cta_group::{{group}}.sync.aligned.b32 %r100, {{columns}}; FREED:\n"""


def expect(size: int) -> str:
    return f"@%q14 mbarrier.arrive.expect_tx.shared.b64 _, [%s], {size};\n"


def registers(first: int, count: int) -> str:
    return "{" + ", ".join(f"%r{first + i}" for i in range(count)) + "}"


OWN_LANES = "and.b32 %r101,%t,0x60; shl.b32 %r101,%r101,16; add.u32 %r101,%r101,%r100;\n"
"""%r101: %r100 in the lanes of the thread's warp."""


def fill_tmem(columns: int) -> str:
    """Every warp writes lane << 16 | column to its lanes of so many columns. Uses %r0 to %r7."""
    body = OWN_LANES
    for first in range(0, columns, 8):
        for i in range(8):
            body += f"shl.b32 %r{i},%t,16; or.b32 %r{i},%r{i},{first + i};\n"
        body += f"tcgen05.st.sync.aligned.32x32b.x8.b32 [%r101+{first}], {registers(0, 8)};\n"
    return body + "tcgen05.wait::st.sync.aligned;\n"


def kernel(body: str, memory: Mapping[str, Any] = {}, maps: Mapping[str, bytes] = {}) -> str:
    """A module with one kernel. %t is the thread's number, %s the address of its dynamic shared
    memory, %<name> that of each tensor and each tensor map.
    """
    parameters = [f".param .u64 {name}_" for name in memory]
    parameters += [f".param .align 64 .b8 {name}_[128]" for name in maps]
    own = "".join(f".reg .b64 %{name};\n" for name in (*memory, *maps))
    own += "".join(f"ld.param.u64 %{name}, [{name}_];\n" for name in memory)
    own += "".join(f"mov.b64 %{name}, {name}_; cvta.param.u64 %{name}, %{name};\n" for name in maps)
    return f"{HEAD}.visible .entry k({', '.join(parameters)}) {{{REGISTERS}{own}{body}\nret;\n}}\n"


def run(
    body: str,
    memory: Mapping[str, torch.Tensor] = {},
    maps: Mapping[str, bytes] = {},
    grid: tuple[int, int, int] = (1, 1, 1),
    block: int | tuple[int, int, int] = 32,
    cluster: tuple[int, int, int] = (1, 1, 1),
    smem: int = 65536,
    outputs: str = "",
    **options: Any,
) -> Report:
    """Runs such a kernel. `outputs`: names of the tensors that it must write whole."""
    block = (block, 1, 1) if isinstance(block, int) else block
    parameters = b"".join(struct.pack("<Q", t.data_ptr()) for t in memory.values())
    for data in maps.values():
        parameters += bytes(-len(parameters) % 64) + data
    given = Options(outputs=frozenset(outputs.split()), **options)
    text = kernel(body, memory, maps)
    return execute(text, "k", grid, block, cluster, smem, parameters, memory, given)


ELEMENT = {8: 0, 16: 1, 32: 2, 64: 4, 4: 11}
"""A tensor map's code of elements of so many bits."""


def tensor_map(
    tensor: torch.Tensor,
    box: tuple[int, ...],
    swizzle: int = 0,
    bits: int | None = None,
    sizes: tuple[int, ...] | None = None,
    strides: tuple[int, ...] | None = None,
) -> bytes:
    """A tiled map over a dense tensor, the innermost dimension first. `swizzle`: 0 to 3."""
    bits = bits or 8 * tensor.element_size()
    sizes = sizes or tuple(reversed(tensor.shape))
    if strides is None:
        strides, pitch = (), sizes[0] * bits // 8
        for size in sizes[1:]:
            strides, pitch = (*strides, pitch), pitch * size
    element = ELEMENT[bits]
    return encode_tensor_map(tensor.data_ptr(), element, swizzle, sizes, strides, box)


MATRIX = 1 << 46 | 0x10 << 32 | 0x08 << 16 | 0x80
"""A matrix descriptor: at shared address 0x800, which is %r110; no swizzle, 128 bytes from one
16-byte column to the next, 256 from 8 rows to the next 8."""
SCALES = 1 << 46 | 0x08 << 32 | 0x80
"""32 rows of 16 bytes, one behind the other, at the same address."""
M128, M256, N8, E2M1 = 8 << 24, 16 << 24, 1 << 17, 1 << 7 | 1 << 10
"""Fields of an instruction descriptor."""


def mma(
    n: int = 8,
    a: int = MATRIX,
    b: int = MATRIX,
    scales_a: int = SCALES,
    scales_b: int = SCALES,
    description: int | None = None,
    group: int = 1,
    size: int = 4096,
) -> str:
    """One MMA of 128 rows a CTA and n columns, 64 of K. Each CTA, of 128 threads, copies its `size`
    bytes of x to %r110 and stores its accumulator, fp32 [128, n], to out.
    """
    if description is None:
        description = (M128 if group == 1 else M256) | n // 8 * N8 | E2M1
    suffix = f"cta_group::{group}"
    body = ONE + AT + INIT + "mov.u32 %r96,%cluster_ctarank; mul.wide.u32 %d1,%t,16;\n"
    body += f"mul.wide.u32 %d2,%r96,{size}; add.s64 %d2,%d2,%d1; add.s64 %d2,%d2,%x;\n"
    body += "mad.lo.u32 %r90,%t,16,%r110;\n"
    for first in range(0, size, 2048):
        body += f"ld.global.v4.b32 {registers(91, 4)},[%d2+{first}];\n"
        body += f"st.shared.v4.b32 [%r90+{first}],{registers(91, 4)};\n"
    body += "fence.proxy.async.shared::cta;\n" + ALLOCATE.format(group=group, columns=512)
    body += PEERS if group == 2 else ""
    body += f"mov.b64 %d10,{a:#x}; mov.b64 %d11,{b:#x}; mov.b64 %d12,{scales_a:#x};\n"
    body += f"mov.b64 %d13,{scales_b:#x}; mov.u32 %r98,{description:#x}; mov.u16 %h1,3;\n"
    body += "setp.ne.u32 %q12,%t,%t; add.u32 %r99,%r100,256; setp.eq.and.u32 %q14,%r96,0,%q14;\n"
    body += "ISSUE: @!%q14 bra ISSUED;\n"
    body += f"COPY_A: tcgen05.cp.{suffix}.32x128b.warpx4 [%r99], %d12;\n"
    for i in range(-(-n // 128)):
        body += f"COPY_B{i}: tcgen05.cp.{suffix}.32x128b.warpx4 [%r99+{4 + 4 * i}], %d13;\n"
        body += "add.s64 %d13,%d13,32;\n"
    body += f"MATRIX: tcgen05.mma.{suffix}.kind::mxf4nvf4.block_scale.scale_vec::4X"
    body += " [%r100], %d10, %d11, %r98, [%r99], [%r99+4], %q12;\n"
    commit = f"tcgen05.commit.{suffix}.mbarrier::arrive::one.shared::cluster"
    body += commit + (".b64 [%s];\n" if group == 1 else ".multicast::cluster.b64 [%s], %h1;\n")
    body += "ISSUED:\n" + WAIT + AFTER + OWN_LANES
    body += f"mul.wide.u32 %d3,%r96,{512 * n}; mul.wide.u32 %d1,%t,{4 * n}; add.s64 %d3,%d3,%d1;\n"
    body += "add.s64 %d3,%d3,%out;\n"
    for first in range(0, n, 8):
        body += f"tcgen05.ld.sync.aligned.32x32b.x8.b32 {registers(0, 8)}, [%r101+{first}];\n"
        body += "tcgen05.wait::ld.sync.aligned;\n"
        body += f"st.global.v4.b32 [%d3+{4 * first}],{registers(0, 4)};\n"
        body += f"st.global.v4.b32 [%d3+{4 * first + 16}],{registers(4, 4)};\n"
    return body + FREE.format(group=group, columns=512) + (PEERS if group == 2 else "")
