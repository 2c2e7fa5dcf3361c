"""Faults in what is read and written, when, and where."""

from emulated_ptx import (
    AFTER,
    ALLOCATE,
    AT,
    FILL,
    FREE,
    ONE,
    OWN_LANES,
    OWN_STORE,
    PEERS,
    RANKS,
    READY,
    STORE,
    STORED,
    WAIT,
    expect,
)
from fault import PAIR, WARPS, Fault
from right_kernels import (
    BULK,
    COMMIT,
    LOADED,
    MULTICAST,
    MULTIPLY,
    PUT,
    READ_TMEM,
    SHARED,
    STORE_BYTES,
    TENSOR,
    TMEM,
    TWICE,
    WRITE_TMEM,
)

from nvfp4.emulator import Kind

SHARED_BY_WARPS = "and.b32 %r4,%t,31; mad.lo.u32 %r3,%r4,4,%r110; "
"""%r3: the same shared addresses for each warp."""

MEMORY_FAULTS = [
    # data read before it has come
    Fault("bulk load", Kind.EARLY_READ, BULK, WAIT, "", "TMA load", "ld.shared.v4"),
    Fault("tensor load", Kind.EARLY_READ, TENSOR, WAIT, "", "TMA load", "ld.shared.v4"),
    Fault(
        "waits for the wrong phase", Kind.EARLY_READ, BULK, "[%s], 0; @!%q13", "[%s], 1; @!%q13",
        "TMA load",
    ),
    Fault(
        "another warp's store", Kind.EARLY_READ,
        AT + SHARED + "st.shared.b32 [%r3],0;\nbar.sync 0;\nsetp.lt.u32 %q0,%t,32;\n"
        "and.b32 %r4,%t,31; mad.lo.u32 %r3,%r4,4,%r110; @%q0 st.shared.b32 [%r3],%t;\n"
        "mov.u32 %r5,0; L: add.u32 %r5,%r5,1; setp.lt.u32 %q1,%r5,500; @%q1 bra L;\n"
        "bar.sync 1;\nld.shared.b32 %r0,[%r3];\n" + STORE,
        "bar.sync 1;\n", "", "without waiting for its writer", "ld.shared", {"block": 64},
    ),
    Fault(
        "warps store different values", Kind.OVERWRITE,
        AT + SHARED_BY_WARPS + "mov.u32 %r5,7;\nst.shared.b32 [%r3],%r5;\nbar.sync 1;\n"
        "ld.shared.b32 %r0,[%r3];\n" + STORE,
        "%r5,7", "%r5,%t", "without waiting for its writer", "st.shared", {"block": 64},
    ),
    Fault(
        "one of two equal stores is overwritten", Kind.OVERWRITE,
        AT + SHARED_BY_WARPS + "mov.u32 %r5,7;\nst.shared.b32 [%r3],%r5;\nbar.sync 1;\n"
        "setp.lt.u32 %q0,%t,32;\nmov.u32 %r6,8;\n@%q0 st.shared.b32 [%r3],%r6;\nbar.sync 2;\n"
        "ld.shared.b32 %r0,[%r3];\n" + STORE,
        "bar.sync 1;\n", "", "without waiting", "st.shared", {"block": 64},
    ),
    Fault(
        "a peer's store", Kind.EARLY_READ,
        RANKS + AT + PEERS + SHARED + "mapa.shared::cluster.u32 %r4,%r3,%r2;\n"
        "st.shared::cluster.b32 [%r4],%t;\nbarrier.cluster.arrive.release;\n"
        "barrier.cluster.wait.acquire;\nld.shared.b32 %r0,[%r3];\n" + OWN_STORE,
        "arrive.release", "arrive.relaxed", "without waiting", "ld.shared", PAIR,
    ),
    Fault("accumulator", Kind.EARLY_READ, MULTIPLY, WAIT, "", "tensor core", "tcgen05.ld", WARPS),
    Fault(
        "a register of tcgen05.ld", Kind.EARLY_READ, TMEM, LOADED, "", "wait::ld", "st.global"
    ),
    Fault(
        "a copy of a register of tcgen05.ld", Kind.EARLY_READ,
        TMEM.replace(LOADED, LOADED + "mov.b32 %r0,%r0;\n"),
        LOADED + "mov.b32 %r0,%r0;\n", "mov.b32 %r0,%r0;\n" + LOADED, "wait::ld", "mov.b32 %r0,%r0",
    ),
    # overwritten while somebody still uses it
    Fault(
        "store into a load", Kind.OVERWRITE, BULK, WAIT,
        SHARED + "st.shared.b32 [%r3],%t;\n" + WAIT, "TMA load", "st.shared",
    ),
    Fault(
        "store under a bulk store", Kind.OVERWRITE, PUT + "st.shared.b32 [%r90],%t;\n",
        STORED, "cp.async.bulk.commit_group;\n", "TMA store", "st.shared",
    ),
    Fault(
        "too few groups waited for", Kind.OVERWRITE, PUT + "st.shared.b32 [%r90],%t;\n",
        "wait_group 0", "wait_group 1", "TMA store", "st.shared",
    ),
    Fault(
        "load over what a warp reads", Kind.OVERWRITE,
        TWICE,
        "%r5,[%r110];\nbar.sync 0;", "%r5,[%r110];", "reader", "cp.async", {"block": 64},
    ),
    Fault(
        "operand of an MMA", Kind.OVERWRITE, MULTIPLY, WAIT,
        "add.u32 %r5,%s,1024; @%q14 st.shared.b32 [%r5],%t;\n" + WAIT, "reader", "st.shared", WARPS,
    ),
    Fault(
        "freed while read", Kind.OVERWRITE,
        ALLOCATE.format(group=1, columns=32) + OWN_LANES + WRITE_TMEM + READ_TMEM + LOADED + STORE
        + FREE.format(group=1, columns=32),
        f"bar.sync 0; {AFTER}@!%q15 bra FREED", "@!%q15 bra FREED", "", "tcgen05.dealloc", WARPS,
    ),
    # the generic and the async proxy
    Fault("bulk store", Kind.PROXY, PUT, "fence.proxy.async.shared::cta;", "", "", STORE_BYTES),
    Fault(
        "bulk load", Kind.PROXY, BULK.replace(expect(512), FILL + expect(512)),
        "fence.proxy.async.shared::cta;", "", "fence.proxy.async", "cp.async.bulk",
    ),
    Fault("MMA", Kind.PROXY, MULTIPLY, "fence.proxy.async.shared::cta;", "", "", "tcgen05", WARPS),
    Fault(
        "fence before the store", Kind.PROXY, PUT, "st.shared.b32 [%r90],%r91; fence.proxy.async"
        ".shared::cta;", "fence.proxy.async.shared::cta; st.shared.b32 [%r90],%r91;",
    ),
    # never written
    Fault(
        "shared memory", Kind.UNINITIALISED,
        AT + SHARED + "st.shared.b32 [%r3],%t;\nld.shared.b32 %r0,[%r3];\n" + STORE,
        "st.shared.b32 [%r3],%t;", "", "never written", "ld.shared",
    ),
    Fault("tensor memory", Kind.UNINITIALISED, TMEM, WRITE_TMEM, "", "tensor memory column 0"),
    Fault(
        "scale factors", Kind.UNINITIALISED, MULTIPLY, "COPY_B0:", "bra MATRIX; COPY_B0:",
        "column 260", "tcgen05.mma", WARPS,
    ),
    Fault(
        "accumulator", Kind.UNINITIALISED, MULTIPLY, "%q12;", "!%q12;", "column 0", "tcgen05.mma",
        WARPS,
    ),
    # out of bounds
    Fault(
        "load past a tensor", Kind.OUT_OF_BOUNDS, "ld.global.b32 %r0,[%x+4092];\n",
        "4092", "4096", r"x \(4096 bytes\).*\+4 from its end", "ld.global",
    ),
    Fault(
        "load before a tensor", Kind.OUT_OF_BOUNDS, "ld.global.b32 %r0,[%x+0];\n", "+0", "-4", "",
        "ld.global",
    ),
    Fault(
        "store past a tensor", Kind.OUT_OF_BOUNDS, "st.global.v2.b32 [%out+4088],{%t,%t};\n",
        "4088", "4096", "out", "st.global",
    ),
    Fault(
        "shared memory", Kind.OUT_OF_BOUNDS, "st.shared.b32 [%s+65532],%t;\n", "65532", "65536", "",
        "st.shared",
    ),
    Fault(
        "the system's shared memory", Kind.OUT_OF_BOUNDS, "st.shared.b32 [%s],%t;\n", "[%s]",
        "[%s-4]", "", "st.shared",
    ),
    Fault(
        "a peer that is not there", Kind.OUT_OF_BOUNDS,
        "mapa.shared::cluster.u32 %r4,%s,1;\n" + PEERS, "%s,1", "%s,2", "CTA", "mapa", PAIR,
    ),
    Fault(
        "an address of no peer", Kind.OUT_OF_BOUNDS,
        "add.u32 %r4,%s,0x0; st.shared::cluster.b32 [%r4],%t;\n" + PEERS, "0x0", "0x4000000", "CTA",
        "st.shared", PAIR,
    ),
    Fault(
        "a map larger than its tensor", Kind.OUT_OF_BOUNDS, TENSOR.replace("%r2,4", "%r2,32"),
        "%map", "%wrong_map", "belong to no tensor", "cp.async",
    ),
    Fault("bulk load", Kind.OUT_OF_BOUNDS, BULK, "[%x]", "[%x+3600]", "no tensor", "cp.async"),
    Fault("bulk store", Kind.OUT_OF_BOUNDS, PUT, "[%out]", "[%out+4000]", "", "cp.async"),
    Fault(
        "prefetch", Kind.OUT_OF_BOUNDS,
        ONE + "@%q14 cp.async.bulk.prefetch.L2.global [%x], 4096;\n", "4096",
        "4112", "", "prefetch",
    ),
    Fault(
        "bulk load to the end of shared memory", Kind.OUT_OF_BOUNDS,
        BULK.replace("%s,1024", "%s,65024"), "65024", "65040", "shared", "cp.async",
    ),
    Fault(
        "past the parameters", Kind.OUT_OF_BOUNDS, "ld.param.b32 %r0,[x_+4];\n", "+4", "+4096",
        "parameters", "ld.param",
    ),
    Fault(
        "peers that are not there", Kind.OUT_OF_BOUNDS,
        "setp.lt.u32 %q0,%t,16; selp.u32 %r4,1,0,%q0;\nmapa.shared::cluster.u32 %r5,%s,%r4;\n"
        + PEERS, "%r4,1,0", "%r4,2,0", "no such CTA", "mapa", PAIR,
    ),
    Fault(
        "an address of another space", Kind.OUT_OF_BOUNDS,
        "cvt.u64.u32 %d5,%s; cvta.shared.u64 %d5,%d5;\ncvta.to.shared.u64 %d6,%d5;\n",
        "%d6,%d5", "%d6,%x", "not in .shared", "cvta.to",
    ),
    Fault(
        "a commit to a CTA that is not there", Kind.OUT_OF_BOUNDS,
        ONE + READY + PEERS + "mov.u16 %h1,1;\n" + COMMIT + WAIT, "%h1,1;", "%h1,9;",
        "CTA mask", "tcgen05.commit",
    ),
    Fault(
        "a multicast to a CTA that is not there", Kind.OUT_OF_BOUNDS,
        ONE + AT + READY + expect(512) + MULTICAST + WAIT, "%h1,1;", "%h1,3;", "CTA mask",
        "cp.async",
    ),
    Fault(
        "a bulk store of a peer's shared memory", Kind.OUT_OF_BOUNDS,
        RANKS + ONE + AT + FILL + PEERS + "mapa.shared::cluster.u32 %r4,%r110,%r1;\n"
        "setp.eq.u32 %q0,%r1,0; @!%q0 bra E;\n" + STORE_BYTES.replace("%r110", "%r4") + STORED
        + "E: " + PEERS,
        "%r110,%r1", "%r110,%r2", "another CTA", "cp.async", PAIR,
    ),
    # misaligned
    Fault("bulk store", Kind.MISALIGNED, PUT, "[%out]", "[%out+8]", "16", "cp.async"),
    Fault(
        "tensor store", Kind.MISALIGNED,
        ONE + AT + FILL + "bar.sync 0; mov.u32 %r1,0; bar.sync 0;\n"
        "@%q14 cp.async.bulk.tensor.2d.global.shared::cta.tile.bulk_group [%map, {%r1, %r1}], "
        "[%r110+0];\n" + STORED, "+0", "+16", "tensor copy", "cp.async", WARPS,
    ),
    Fault("vector", Kind.MISALIGNED, "ld.global.v2.b32 {%r0,%r1},[%x+8];\n", "+8", "+4", "8-byte"),
    Fault("shared vector", Kind.MISALIGNED, "st.shared.b64 [%s+8],%d0;\n".replace("%d0", "%x"),
          "+8", "+4", "8-byte", "st.shared"),
    Fault("bulk load", Kind.MISALIGNED, BULK, "[%x]", "[%x+8]", "16", "cp.async"),
    Fault("tensor load", Kind.MISALIGNED, TENSOR, "%s,1024", "%s,1040", "", "cp.async"),
    Fault("tensor map", Kind.MISALIGNED, TENSOR, "[%map,", "[%map+16,", "64", "cp.async"),
    Fault("allocation", Kind.MISALIGNED, TMEM, "[%s+16], 32", "[%s+18], 32", "", "alloc"),
    Fault(
        "mbarrier", Kind.MISALIGNED, ONE + "@%q14 mbarrier.init.shared.b64 [%s+8], 1;\n",
        "+8", "+4", "mbarrier", "mbarrier.init",
    ),
]  # fmt: skip
