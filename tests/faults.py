"""Faults that the emulator looks for: each a small kernel that is right, and an edit of it that
brings the fault in.
"""

import re
from dataclasses import dataclass, field
from typing import Any

from emulated_ptx import (
    ALLOCATE,
    AT,
    COPY_OUT,
    FILL,
    FREE,
    INIT,
    LOAD,
    LOAD_BYTES,
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
    mma,
)

from nvfp4.backends.cutedsl.emulator import Kind


@dataclass(frozen=True)
class Fault:
    """`old`, in a kernel that is right, becomes `new`: a hazard of this kind, which says `says` and
    names the line of `at`.
    """

    id: str
    kind: Kind
    body: str
    old: str
    new: str
    says: str = ""
    at: str = ""
    options: dict[str, Any] = field(default_factory=dict)
    sometimes: bool = False  # it shows only if one CTA comes before the other

    @property
    def edited(self) -> str:
        assert self.body.count(self.old) == 1, (self.id, self.body.count(self.old))
        return self.body.replace(self.old, self.new)


TWO = {"grid": (2, 1, 1)}
PAIR = {"grid": (2, 1, 1), "cluster": (2, 1, 1)}
WARPS = {"block": 128}
SMALL = "tcgen05.alloc.cta_group::1.sync.aligned.shared::cta.b32 [%s+16], 32;\n"
RELINQUISH = "tcgen05.relinquish_alloc_permit.cta_group::1.sync.aligned;\n"
FREE_SMALL = "tcgen05.dealloc.cta_group::1.sync.aligned.b32 %r100, 32;\n"
COLUMN = "ld.shared.b32 %r100, [%s+16];\n"
READ_TMEM = "tcgen05.ld.sync.aligned.32x32b.x1.b32 {%r0}, [%r101];\n"
LOADED = "tcgen05.wait::ld.sync.aligned;\n"
WRITE_TMEM = "mov.u32 %r5,7; tcgen05.st.sync.aligned.32x32b.x1.b32 [%r101], {%r5};\n"
TMEM = (
    SMALL + RELINQUISH + COLUMN + OWN_LANES + WRITE_TMEM + READ_TMEM + LOADED + STORE + FREE_SMALL
)
SHARED = "mad.lo.u32 %r3,%t,4,%r110; "
BYTES = f"@%q14 {LOAD_BYTES} [%r110], [%x], 512, [%s];\n"
BULK = ONE + AT + READY + expect(512) + BYTES + WAIT + COPY_OUT
BOX = f"@%q14 {LOAD.format(2)} [%r110], [%map, {{0, 0}}], [%s];\n"
TENSOR = "mov.u32 %r1,0; mov.u32 %r2,4;\n" + ONE + AT + READY + expect(512)
TENSOR += BOX.replace("0, 0", "%r1, %r2") + WAIT + COPY_OUT
STORE_BYTES = "cp.async.bulk.global.shared::cta.bulk_group [%out], [%r110], 128;\n"
PUT = AT + FILL + STORE_BYTES + STORED
MULTIPLY = mma()
WRITTEN_SCALES = re.sub("COPY_.*\n", "", MULTIPLY).replace(
    "ISSUE:",
    OWN_LANES + "mov.u32 %r5,0x38383838;\n"
    "tcgen05.st.sync.aligned.32x32b.x4.b32 [%r101+256], {%r5,%r5,%r5,%r5};\n"
    "tcgen05.st.sync.aligned.32x32b.x4.b32 [%r101+260], {%r5,%r5,%r5,%r5};\n"
    "tcgen05.wait::st.sync.aligned; tcgen05.fence::before_thread_sync; bar.sync 0;\nISSUE:",
)  # fmt: skip
COMMIT = "@%q14 tcgen05.commit.cta_group::1.mbarrier::arrive::one.shared::cluster"
COMMIT += ".multicast::cluster.b64 [%s], %h1;\n"
MULTICAST = "mov.u16 %h1,1;\n" + BYTES.replace("shared::cta", "shared::cluster").replace(
    "bytes ", "bytes.multicast::cluster "
).replace("[%s]", "[%s], %h1")
TWICE = (
    ONE + AT + "@%q14 mbarrier.init.shared.b64 [%s+8], 1;\n" + READY + expect(512) + BYTES + WAIT
)
TWICE += "ld.shared.b32 %r5,[%r110];\nbar.sync 0;\n"
TWICE += (expect(512) + BYTES + WAIT).replace("[%s]", "[%s+8]")

FAULTS = [
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
        "bar.sync 0; @!%q15 bra FREED", "@!%q15 bra FREED", "", "tcgen05.dealloc", WARPS,
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
        "prefetch", Kind.OUT_OF_BOUNDS, "cp.async.bulk.prefetch.L2.global [%x], 4096;\n", "4096",
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
        RANKS + AT + FILL + PEERS + "mapa.shared::cluster.u32 %r4,%r110,%r1;\n"
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
    # mbarriers
    Fault("no init", Kind.MBARRIER, BULK, "@%q14 mbarrier.init.shared.b64 [%s], 1;", "",
          "no mbarrier was init", "mbarrier.arrive"),
    Fault("init unseen", Kind.MBARRIER,
          ONE + READY + "@%q14 mbarrier.arrive.shared.b64 _,[%s];\n" + WAIT, "bar.sync 0;", "",
          "waiting for its mbarrier.init", "mbarrier.try", {"block": 64}),
    Fault("init twice", Kind.MBARRIER, BULK, READY, READY + INIT, "twice", "mbarrier.init"),
    Fault("too many arrivals", Kind.MBARRIER, BULK, expect(512), expect(512)
          + "@%q14 mbarrier.arrive.shared.b64 _, [%s];\n", "1 arrivals", "mbarrier.arrive.shared"),
    Fault("all lanes arrive", Kind.MBARRIER, BULK, "@%q14 mbarrier.arrive", "mbarrier.arrive",
          "32 arrivals", "mbarrier.arrive"),
    Fault("too few bytes expected", Kind.MBARRIER, BULK, "[%s], 512;\n@", "[%s], 256;\n@",
          "256 bytes more than expected", "cp.async"),
    Fault("for nobody", Kind.MBARRIER, BULK, "[%s], 1; fence", "[%s], 0; fence", "0 arrivals"),
    Fault("data over it", Kind.MBARRIER, BULK, WAIT, WAIT + "st.shared.b32 [%s+4],%t;\n",
          "belongs to an mbarrier", "st.shared"),
    Fault("data from it", Kind.MBARRIER, BULK, WAIT, WAIT + "ld.shared.b32 %r5,[%s];\n",
          "belongs to an mbarrier", "ld.shared"),
    Fault(
        "invalidated within a phase", Kind.MBARRIER,
        BULK + "@%q14 mbarrier.inval.shared.b64 [%s];\n", BYTES,
        "@%q14 mbarrier.inval.shared.b64 [%s];\n" + BYTES, "within a phase", "mbarrier.inval",
    ),
    Fault("tx-count out of range", Kind.MBARRIER, BULK, expect(512),
          "@%q14 mbarrier.expect_tx.relaxed.cta.shared.b64 [%s], 1048575;\n" + expect(512),
          "out of range", "mbarrier.arrive"),
    # barriers
    Fault("of unequal counts", Kind.BARRIER, "setp.lt.u32 %q0,%t,32; selp.u32 %r1,64,64,%q0;\n"
          "bar.sync 1,%r1;\n", "64,64", "64,96", "others meet", "bar.sync", {"block": 64}),
    Fault("of half a warp", Kind.BARRIER, "bar.sync 1,32;\n", "1,32", "1,16", "16", "bar.sync"),
    Fault("number 16", Kind.BARRIER, "mov.u32 %r1,15; bar.sync %r1;\n", "15", "16", "16"),
    Fault("arrives twice", Kind.BARRIER, PEERS, "arrive;", "arrive; barrier.cluster.arrive;",
          "twice"),
    Fault("waits for nothing", Kind.BARRIER, PEERS, "barrier.cluster.arrive;", "", "without"),
    # tensor memory
    Fault("freed twice", Kind.TMEM, TMEM, FREE_SMALL, FREE_SMALL + FREE_SMALL, "none", "dealloc"),
    Fault("other columns freed", Kind.TMEM, TMEM, "%r100, 32", "%r100, 64", "32 from 0", "dealloc"),
    Fault("freed elsewhere", Kind.TMEM, TMEM, FREE_SMALL,
          "add.u32 %r100,%r100,32;" + FREE_SMALL, "0x20", "dealloc"),
    Fault("never freed", Kind.UNFINISHED, TMEM, FREE_SMALL, "", "still allocated"),
    Fault("a number of columns", Kind.TMEM, TMEM, "[%s+16], 32", "[%s+16], 48", "48 columns: alloc",
          "alloc"),
    Fault("unequal numbers of columns in a pair", Kind.TMEM,
          RANKS + "mad.lo.u32 %r3,%r1,0,32;\n"
          + SMALL.replace("::1", "::2").replace(" 32;", " %r3;")
          + RELINQUISH.replace("::1", "::2") + COLUMN + PEERS
          + FREE_SMALL.replace("::1", "::2").replace(" 32;", " %r3;"),
          "%r1,0,32", "%r1,32,32", "different numbers", "alloc", PAIR),
    Fault("scales that differ", Kind.TMEM, WRITTEN_SCALES, "mov.u32 %r5,0x38383838",
          "add.u32 %r5,%t,0x38383800", "quarters", "tcgen05.mma", WARPS),
    Fault("allocated after relinquishing", Kind.TMEM, TMEM, SMALL + RELINQUISH, RELINQUISH + SMALL,
          "relinquish", "alloc"),
    Fault("outside the allocation", Kind.TMEM, TMEM, "b32 {%r0}, [%r101]", "b32 {%r0}, [%r101+32]",
          "columns 32..32", "tcgen05.ld"),
    Fault("another warp's lanes", Kind.TMEM, ALLOCATE.format(group=1, columns=32) + OWN_LANES
          + WRITE_TMEM + READ_TMEM + LOADED + STORE + FREE.format(group=1, columns=32),
          "%t,0x60", "%t,0x20", "may access 32 lanes from", "tcgen05.st", WARPS),
    Fault("scales in a quarter", Kind.TMEM, MULTIPLY, "COPY_A:",
          "or.b32 %r99,%r99,0x200000; COPY_A:", "to lane 0", "tcgen05.cp", WARPS),
    Fault("scales from a quarter", Kind.TMEM, MULTIPLY, "MATRIX:",
          "or.b32 %r99,%r99,0x200000; MATRIX:", "lane 0", "tcgen05.mma", WARPS),
    # who issues
    Fault("several lanes' MMA", Kind.MANY_LANES, MULTIPLY, "ISSUE: @!%q14 bra ISSUED",
          "ISSUE: @!%q15 bra ISSUED", "32 lanes", "tcgen05.cp", WARPS),
    Fault("several lanes' load", Kind.MANY_LANES, BULK, "@%q14 cp.async", "cp.async", "32 lanes"),
    Fault("several lanes' mbarriers", Kind.MANY_LANES, ONE + "mad.lo.u32 %r5,0,8,%s;\n"
          "@%q14 mbarrier.init.shared.b64 [%r5], 1;\n", "0,8,%s;\n@%q14", "%t,8,%s;\n",
          "different"),
    Fault("several addresses", Kind.MANY_LANES, TMEM, "[%r101];", "[%t];", "differ", "tcgen05.ld"),
    Fault("several sources", Kind.MANY_LANES, PUT, "[%r110], 128", "[%r90], 128", "the source",
          "cp.async"),
    Fault("part of a warp", Kind.PARTIAL_WARP, TMEM, READ_TMEM,
          "mov.u32 %r0,0; setp.lt.u32 %q0,%t,9; @!%q0 bra E;\n" + READ_TMEM + LOADED + "E: ",
          "the whole warp"),
    Fault("part of a warp's barrier", Kind.PARTIAL_WARP, "setp.lt.u32 %q0,%t,9; @!%q0 bra E;\n"
          "mov.u32 %r0,1; E: bar.sync 0;\n", "mov.u32 %r0,1; E:", "bar.sync 0; ret; E:", "",
          "bar.sync"),
    Fault("a shuffle from outside", Kind.PARTIAL_WARP, "setp.lt.u32 %q0,%t,9; @!%q0 bra E;\n"
          "shfl.sync.idx.b32 %r0,%t,8,31,0x1FF;\nE: ", "%t,8", "%t,9", "lane 9", "shfl"),
    Fault("shuffles from outside", Kind.PARTIAL_WARP, "setp.lt.u32 %q0,%t,9; @!%q0 bra E;\n"
          "sub.u32 %r1,8,%t; shfl.sync.idx.b32 %r0,%t,%r1,31,0x1FF;\nE: ", "8,%t", "9,%t",
          "from a lane", "shfl"),
    Fault("a mask that leaves itself out", Kind.PARTIAL_WARP, "redux.sync.add.u32 %r0,%t,-1;\n",
          "-1", "0xFF", "", "redux"),
    # descriptors
    Fault("no tensor map", Kind.DESCRIPTOR, TENSOR, "%map", "%no_map", "no tensor map",
          "cp.async"),
    Fault("coordinates", Kind.DESCRIPTOR, TENSOR,
          f"{LOAD.format(2)} [%r110], [%map, {{%r1, %r2}}]",
          f"{LOAD.format(3)} [%r110], [%map, {{%r1, %r2, %r2}}]",
          "3 coordinates, 2 dim"),
    Fault("half a byte", Kind.DESCRIPTOR, "mov.u32 %r1,2; mov.u32 %r2,4;\n" + ONE + AT + READY
          + expect(64) + BOX.replace("0, 0", "%r1, %r2").replace("%map", "%nibbles") + WAIT,
          "%r1,2", "%r1,1", "within a byte", "cp.async"),
    Fault("matrix version", Kind.DESCRIPTOR, MULTIPLY, "MATRIX:",
          "and.b64 %d10,%d10,0xFFFF3FFFFFFFFFFF; MATRIX:", "version", "tcgen05.mma", WARPS),
    Fault("rows of an MMA", Kind.DESCRIPTOR, MULTIPLY, "MATRIX:",
          "xor.b32 %r98,%r98,0x0C000000; MATRIX:", "64 x 8", "tcgen05.mma", WARPS),
    Fault("columns of an MMA", Kind.DESCRIPTOR, MULTIPLY, "MATRIX:",
          "and.b32 %r98,%r98,0xFF81FFFF; MATRIX:", "128 x 0", "tcgen05.mma", WARPS),
    Fault("formats of an MMA", Kind.DESCRIPTOR, MULTIPLY, "MATRIX:",
          "xor.b32 %r98,%r98,0x80; MATRIX:", "E2M1", "tcgen05.mma", WARPS),
    # clusters
    Fault("two groups in one kernel", Kind.CTA_GROUP, TMEM, RELINQUISH,
          RELINQUISH.replace("::1", "::2"), "::2 after ::1", "relinquish"),
    Fault("a pair of one", Kind.CTA_GROUP, TMEM, SMALL, SMALL.replace("::1", "::2"), "second CTA"),
    Fault("the mbarrier of another CTA", Kind.CTA_GROUP,
          RANKS + ONE + AT + READY + PEERS + "mapa.shared::cluster.u32 %r4,%s,%r1;\n" + expect(512)
          + BYTES.replace("[%s]", "[%r4]").replace("shared::cta.global", "shared::cluster.global")
          + WAIT + PEERS,
          "%s,%r1", "%s,%r2", "another CTA", "cp.async", PAIR),
    Fault("the mbarrier of another pair", Kind.CTA_GROUP,
          RANKS + ONE + AT + READY + PEERS + "xor.b32 %r3,%r1,2; mov.u32 %r5,0;\n"
          "mapa.shared::cluster.u32 %r4,%s,%r1;\n" + expect(512)
          + BOX.replace("0, 0", "%r5, %r5").replace("[%s]", "[%r4]")
          .replace("::bytes", "::bytes.cta_group::2") + WAIT + PEERS,
          "%s,%r1", "%s,%r3", "CTA pair", "cp.async", {"grid": (4, 1, 1), "cluster": (4, 1, 1)}),
    Fault("a commit that comes too late", Kind.EXITED,
          RANKS + ONE + READY + PEERS + "setp.eq.u32 %q0,%r1,1; @%q0 bra B; mov.u16 %h1,2;\n"
          + COMMIT + "bra E;\nB: " + WAIT + "E: ", WAIT, "", "a commit to CTA", "tcgen05.commit",
          {**PAIR, "delay": 1000}),
    Fault("a peer that has ended", Kind.EXITED,
          RANKS + AT + "setp.eq.u32 %q0,%r1,1; @%q0 bra E;\nmapa.shared::cluster.u32 %r4,%r110,1;\n"
          "mov.u32 %r5,0; L: add.u32 %r5,%r5,1; setp.lt.u32 %q1,%r5,2000; @%q1 bra L;\n"
          "st.shared::cluster.b32 [%r4],%t;\nE: " + PEERS,
          PEERS, "", "has exited", "st.shared", PAIR),
    Fault("a commit for a pair of which one has ended", Kind.EXITED,
          RANKS + ONE + READY + PEERS + "setp.eq.u32 %q0,%r1,1; @%q0 bra E; mov.u32 %r5,0;\n"
          "L: add.u32 %r5,%r5,1; setp.lt.u32 %q1,%r5,2000; @%q1 bra L;\n"
          "@%q14 tcgen05.commit.cta_group::2.mbarrier::arrive::one.shared::cluster.b64 [%s];\n"
          + WAIT + "E: " + PEERS, "E: " + PEERS, "E: ", "has exited", "tcgen05.commit", PAIR),
    Fault("a load to a CTA that has ended", Kind.EXITED, BULK, WAIT + COPY_OUT, "", "has exited",
          "cp.async", {"delay": 1000, "seed": 1}),
    Fault("a bulk store that nobody waits for", Kind.UNFINISHED, PUT, STORED,
          "cp.async.bulk.commit_group;", "bulk stores"),
    Fault("a bulk store in no group", Kind.UNFINISHED, PUT, "cp.async.bulk.commit_group;", "",
          "bulk stores"),
    # global memory
    Fault("two CTAs write a byte", Kind.RACE, "mov.u32 %r0,1;\n" + OWN_STORE, "%r90,%r90,%r91,%t",
          "%r90,0,%r91,%t", "both write", "st.global", TWO),
    Fault("a CTA reads what another writes", Kind.RACE,
          "mov.u32 %r0,1;\n" + OWN_STORE + "ld.global.b32 %r5,[%d1];\n", "%r5,[%d1]", "%r5,[%out]",
          "CTA 0 has written", "ld.global", TWO, True),
    Fault("a CTA loads what another writes", Kind.RACE,
          ONE + AT + "mov.u32 %r0,1;\n" + READY + expect(128) + OWN_STORE
          + "mov.u32 %r5,%ctaid.x;\nmad.wide.u32 %d5,%r5,128,%out;\n"
          + f"@%q14 {LOAD_BYTES} [%r110], [%d5], 128, [%s];\n" + WAIT,
          "%r5,128", "%r5,0", "CTA 0 has written", "cp.async", TWO, True),
    # programmatic dependent launch
    Fault("a load before the wait", Kind.GRID_DEPENDENCY,
          "griddepcontrol.wait;\nld.global.b32 %r0,[%x];\n" + STORE,
          "griddepcontrol.wait;\nld.global.b32 %r0,[%x];",
          "ld.global.b32 %r0,[%x];\ngriddepcontrol.wait;",
          "griddepcontrol.wait", "ld.global"),
    Fault("a store before the wait", Kind.GRID_DEPENDENCY,
          "mov.u32 %r0,1;\ngriddepcontrol.wait;\n" + STORE + "mov.u32 %r1,1;\n",
          "griddepcontrol.wait;\n" + STORE, STORE + "griddepcontrol.wait;\n", "", "st.global"),
    Fault("a bulk load before the wait", Kind.GRID_DEPENDENCY, "griddepcontrol.wait;\n" + BULK,
          "griddepcontrol.wait;\n" + BULK, BULK.replace(WAIT, WAIT + "griddepcontrol.wait;\n"), "",
          "cp.async"),
    Fault("a bulk store before the wait", Kind.GRID_DEPENDENCY, "griddepcontrol.wait;\n" + PUT,
          "griddepcontrol.wait;\n" + PUT, PUT + "griddepcontrol.wait;\n", "", "cp.async"),
    Fault("another warp has waited, unheard", Kind.GRID_DEPENDENCY,
          "setp.lt.u32 %q0,%t,32; @!%q0 bra E; griddepcontrol.wait;\nE: bar.sync 0;\n"
          "mov.u32 %r0,1;\n" + STORE, "bar.sync 0;", "", "", "st.global", {"block": 64}),
]  # fmt: skip
