"""Faults in who waits for whom, who issues, and what is asked of the hardware."""

from emulated_ptx import (
    ALL_RUN,
    ALLOCATE,
    AT,
    COPY_OUT,
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
)
from fault import PAIR, TWO, WARPS, Fault
from right_kernels import (
    BOX,
    BULK,
    BYTES,
    COLUMN,
    COMMIT,
    FREE_SMALL,
    LOADED,
    MULTIPLY,
    PUT,
    READ_TMEM,
    RELINQUISH,
    SMALL,
    TENSOR,
    TMEM,
    WRITE_TMEM,
    WRITTEN_SCALES,
)

from nvfp4.emulator import Kind

ORDER_FAULTS = [
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
          ALL_RUN + RANKS + "mad.lo.u32 %r3,%r1,0,32;\n"
          + SMALL.replace("::1", "::2").replace(" 32;", " %r3;")
          + RELINQUISH.replace("::1", "::2") + COLUMN + PEERS
          + FREE_SMALL.replace("::1", "::2").replace(" 32;", " %r3;"),
          "%r1,0,32", "%r1,32,32", "different numbers", "alloc", PAIR),
    Fault("a pair that allocates before both run", Kind.NOT_STARTED,
          ALL_RUN + SMALL.replace("::1", "::2") + RELINQUISH.replace("::1", "::2") + COLUMN + PEERS
          + FREE_SMALL.replace("::1", "::2"),
          ALL_RUN, "", "is not known to run", "tcgen05.alloc", PAIR),
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
    Fault("A's scales at an odd column", Kind.TMEM, MULTIPLY, "%r98, [%r99], [%r99+4]",
          "%r98, [%r99+1], [%r99+4]", "A's scale factors begin at column 257", "tcgen05.mma",
          WARPS),
    Fault("B's scales at an odd column", Kind.TMEM, MULTIPLY, "%r98, [%r99], [%r99+4]",
          "%r98, [%r99], [%r99+5]", "B's scale factors begin at column 261.*pairs of columns",
          "tcgen05.mma", WARPS),
    # who issues
    Fault("several lanes' MMA", Kind.MANY_LANES, MULTIPLY, "ISSUE: @!%q14 bra ISSUED",
          "ISSUE: @!%q15 bra ISSUED", "32 lanes", "tcgen05.cp", WARPS),
    Fault("several lanes' load", Kind.MANY_LANES, BULK, "@%q14 cp.async", "cp.async", "32 lanes"),
    Fault("several lanes' mbarriers", Kind.MANY_LANES, ONE + "mad.lo.u32 %r5,0,8,%s;\n"
          "@%q14 mbarrier.init.shared.b64 [%r5], 1;\n", "0,8,%s;\n@%q14", "%t,8,%s;\n",
          "differ in the mbarrier"),
    Fault("several addresses", Kind.MANY_LANES, TMEM, "[%r101];", "[%t];", "differ", "tcgen05.ld"),
    Fault("several lanes' store", Kind.MANY_LANES, PUT, "@%q14 cp.async.bulk.global",
          "cp.async.bulk.global", "32 lanes", "cp.async"),
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
          "from lane 9", "shfl"),
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
          "xor.b32 %r98,%r98,0x18000000; MATRIX:", "256 x 8", "tcgen05.mma", WARPS),
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
          + COMMIT + "bra E;\nB: " + WAIT + "E: ", WAIT, "",
          "exits without having waited for the arrival of a commit", "ret",
          {**PAIR, "delay": 1000}),
    Fault("a peer that has ended", Kind.EXITED,
          ALL_RUN + RANKS + AT
          + "setp.eq.u32 %q0,%r1,1; @%q0 bra E;\nmapa.shared::cluster.u32 %r4,%r110,1;\n"
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
    Fault("two CTAs write a byte", Kind.RACE,
          "mov.u32 %r0,%ctaid.x;\n" + OWN_STORE, "%r90,%r90,%r91,%t",
          "%r90,0,%r91,%t", "both write", "st.global", TWO),
    Fault("two CTAs write different values", Kind.RACE,
          "mov.u32 %r0,1;\n" + STORE, "%r0,1", "%r0,%ctaid.x", "both write", "st.global", TWO),
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
