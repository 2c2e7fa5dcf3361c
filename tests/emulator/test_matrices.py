"""What ldmatrix and stmatrix do in the emulator."""

import numpy as np
import pytest
import torch
from emulated_ptx import run

from nvfp4.emulator import Hazard, Kind

FILL_ROWS = """mad.lo.u32 %r1,%t,16,%s; mul.wide.u32 %d1,%t,16; add.s64 %d1,%d1,%x;
ld.global.v4.b32 {%r5,%r6,%r7,%r8},[%d1]; st.shared.v4.b32 [%r1],{%r5,%r6,%r7,%r8};\n"""
TURNED = "sub.u32 %r2,31,%t; mad.lo.u32 %r2,%r2,16,%s;\n"
"""%r2: the address of row 31 - lane."""


def matrices() -> torch.Tensor:
    """32 rows of 8 elements, all different."""
    return torch.arange(256, dtype=torch.int16).reshape(32, 8) * 3


@pytest.mark.parametrize("trans", [False, True])
@pytest.mark.parametrize("count", [1, 2, 4])
def test_matrices_are_loaded(count, trans):
    x, out = matrices(), torch.zeros(32, count, 2, dtype=torch.int16)
    items = ",".join(f"%r{10 + i}" for i in range(count))
    form = f"m8n8.x{count}{'.trans' if trans else ''}.shared.b16"
    body = FILL_ROWS + TURNED + f"ldmatrix.sync.aligned.{form} {{{items}}},[%r2];\n"
    body += f"mul.wide.u32 %d1,%t,{4 * count}; add.s64 %d1,%d1,%out;\n"
    for i in range(count):
        body += f"st.global.b32 [%d1+{4 * i}],%r{10 + i};\n"
    run(body, {"x": x, "out": out}, outputs="out")
    for lane in range(32):
        for i in range(count):
            matrix = x.flip(0)[8 * i : 8 * i + 8]
            row, column = lane // 4, 2 * (lane % 4)
            want = (matrix.T if trans else matrix)[row, column : column + 2]
            assert out[lane, i].tolist() == want.tolist()


@pytest.mark.parametrize("count", [1, 2, 4])
def test_transposed_matrices_are_stored(count):
    """What ldmatrix.trans loads, stmatrix.trans stores to the same place."""
    x, out = matrices(), torch.zeros(32, 8, dtype=torch.int16)
    items = ",".join(f"%r{10 + i}" for i in range(count))
    form = f"m8n8.x{count}.trans.shared.b16"
    body = FILL_ROWS + TURNED + f"ldmatrix.sync.aligned.{form} {{{items}}},[%r2];\n"
    body += "add.u32 %r3,%r2,1024; add.u32 %r4,%r1,1024; mov.u32 %r5,0;\n"
    body += "st.shared.v4.b32 [%r4],{%r5,%r5,%r5,%r5};\n"
    body += f"stmatrix.sync.aligned.{form} [%r3],{{{items}}};\n"
    body += "ld.shared.v4.b32 {%r5,%r6,%r7,%r8},[%r4]; mul.wide.u32 %d1,%t,16;\n"
    body += "add.s64 %d1,%d1,%out; st.global.v4.b32 [%d1],{%r5,%r6,%r7,%r8};\n"
    run(body, {"x": x, "out": out}, outputs="out")
    want = np.zeros((32, 8), np.int16)
    want[32 - 8 * count :] = x[32 - 8 * count :]
    np.testing.assert_array_equal(out.numpy(), want)


LOAD = FILL_ROWS + "ldmatrix.sync.aligned.m8n8.x4.shared.b16 {%r10,%r11,%r12,%r13},[%r1];\n"


@pytest.mark.parametrize(
    ("old", "new", "kind"),
    [
        ("},[%r1];\n", "},[%r1+8];\n", Kind.MISALIGNED),
        ("},[%r1];\n", "},[%r1+512];\n", Kind.UNINITIALISED),
        ("},[%r1];\n", "},[%r1+65536];\n", Kind.OUT_OF_BOUNDS),
        ("ldmatrix", "setp.lt.u32 %q0,%t,16; @%q0 bra E;\nldmatrix", Kind.PARTIAL_WARP),
    ],
)
def test_faults_of_ldmatrix(old, new, kind):
    assert old in LOAD
    with pytest.raises(Hazard) as raised:
        run(LOAD.replace(old, new) + "E: bar.warp.sync -1;\n", {"x": matrices()})
    assert raised.value.kind is kind


def test_ldmatrix_waits_for_other_warps():
    """Each warp loads the rows that the other one has stored."""
    body = FILL_ROWS + "bar.sync 0;\nxor.b32 %r1,%t,32; mad.lo.u32 %r1,%r1,16,%s;\n"
    body += "ldmatrix.sync.aligned.m8n8.x4.shared.b16 {%r10,%r11,%r12,%r13},[%r1];\n"
    memory = {"x": torch.zeros(64, 8, dtype=torch.int16)}
    run(body, memory, block=64)
    with pytest.raises(Hazard) as raised:
        run(body.replace("bar.sync 0;", ""), memory, block=64)
    assert raised.value.kind in (Kind.EARLY_READ, Kind.UNINITIALISED)
