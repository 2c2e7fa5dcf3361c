"""Kernels that are right, which faults are brought into (fault.py), and their parts."""

import re

from emulated_ptx import (
    AT,
    COPY_OUT,
    FILL,
    LOAD,
    LOAD_BYTES,
    ONE,
    OWN_LANES,
    READY,
    STORE,
    STORED,
    WAIT,
    expect,
    mma,
)

SMALL = "tcgen05.alloc.cta_group::1.sync.aligned.shared::cta.b32 [%s+16], 32;\n"
RELINQUISH = "tcgen05.relinquish_alloc_permit.cta_group::1.sync.aligned;\n"
FREE_SMALL = "tcgen05.dealloc.cta_group::1.sync.aligned.b32 %r100, 32;\n"
COLUMN = "ld.shared.b32 %r100, [%s+16];\n"
READ_TMEM = "tcgen05.ld.sync.aligned.32x32b.x1.b32 {%r0}, [%r101];\n"
LOADED = "tcgen05.wait::ld.sync.aligned;\n"
WRITE_TMEM = "mov.u32 %r5,7; tcgen05.st.sync.aligned.32x32b.x1.b32 [%r101], {%r5};\n"
WRITE_TMEM += "tcgen05.wait::st.sync.aligned;\n"
TMEM = (
    SMALL + RELINQUISH + COLUMN + OWN_LANES + WRITE_TMEM + READ_TMEM + LOADED + STORE + FREE_SMALL
)
SHARED = "mad.lo.u32 %r3,%t,4,%r110; "
BYTES = f"@%q14 {LOAD_BYTES} [%r110], [%x], 512, [%s];\n"
BULK = ONE + AT + READY + expect(512) + BYTES + WAIT + COPY_OUT
BOX = f"@%q14 {LOAD.format(2)} [%r110], [%map, {{0, 0}}], [%s];\n"
TENSOR = "mov.u32 %r1,0; mov.u32 %r2,4;\n" + ONE + AT + READY + expect(512)
TENSOR += BOX.replace("0, 0", "%r1, %r2") + WAIT + COPY_OUT
STORE_BYTES = "@%q14 cp.async.bulk.global.shared::cta.bulk_group [%out], [%r110], 128;\n"
PUT = ONE + AT + FILL + STORE_BYTES + STORED
MULTIPLY = mma()
WRITTEN_SCALES = re.sub("COPY_.*\n", "", MULTIPLY).replace(
    "ISSUE:",
    OWN_LANES + "mov.u32 %r5,0x38383838;\n"
    "tcgen05.st.sync.aligned.32x32b.x4.b32 [%r101+256], {%r5,%r5,%r5,%r5};\n"
    "tcgen05.st.sync.aligned.32x32b.x4.b32 [%r101+260], {%r5,%r5,%r5,%r5};\n"
    "tcgen05.wait::st.sync.aligned; tcgen05.fence::before_thread_sync; bar.sync 0;\n"
    "tcgen05.fence::after_thread_sync;\nISSUE:",
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
