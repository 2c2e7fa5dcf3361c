"""What tcgen05.mma of float16 computes in the emulator, and half-warp accesses to tensor memory."""

import numpy as np
import pytest
import torch
from emulated_ptx import (  # fmt: skip
    AFTER,
    ALLOCATE,
    BEFORE,
    FREE,
    INIT,
    ONE,
    OWN_LANES,
    WAIT,
    fill_tmem,
    registers,
    run,
)
from matrix_images import HALF, WIDTHS, integers, k_major, mn_major

from nvfp4.emulator import Hazard, Kind, UnsupportedInstruction

COLUMNS = 256


@pytest.mark.parametrize("lane", [0, 16])
@pytest.mark.parametrize("count", [1, 2, 8])
def test_half_warps_read_two_places(count, lane):
    """16x32bx2: thread i of 16 has lane i from the address on, thread 16 + i from `split` later."""
    out = torch.empty(128, count, dtype=torch.int32)
    body = ALLOCATE.format(group=1, columns=64) + fill_tmem(40)
    body += f"add.u32 %r102,%r101,{(lane << 16) + 5};\n"
    body += f"tcgen05.ld.sync.aligned.16x32bx2.x{count}.b32 {registers(50, count)}, [%r102], 16;\n"
    body += f"tcgen05.wait::ld.sync.aligned; mul.wide.u32 %d1,%t,{4 * count};\n"
    body += "add.s64 %d1,%d1,%out;\n"
    body += "".join(f"st.global.b32 [%d1+{4 * i}],%r{50 + i};\n" for i in range(count))
    run(body + FREE.format(group=1, columns=64), {"out": out}, block=128, outputs="out")
    for thread in range(128):
        row = thread // 32 * 32 + thread % 16 + lane
        first = 5 + (16 if thread % 32 >= 16 else 0)
        assert out[thread].tolist() == [row << 16 | first + c for c in range(count)]


A_SHARED, B_SHARED, BASE = 0x1000, 0x5000, 0x400


def multiply(m, n, kind, a_mode=None, mode=1, trans=(0, 0), lane=0, negate=0, accumulate=True,
             leading=4096, stride=1024, edit=("", ""), types=None) -> None:  # fmt: skip
    """One MMA against float64. `a_mode`: A's swizzle in shared memory; None: in tensor memory."""
    x, x_codes = integers(1, (m, 16), kind)
    y, y_codes = integers(2, (n, 16), kind)
    c = np.random.default_rng(3).integers(-9, 9, (m, n)).astype(np.float32)
    image_b = k_major(y_codes, mode, leading, stride)
    if trans[1]:
        image_b = mn_major(np.ascontiguousarray(y_codes.T), mode, leading, stride)
    image_a = np.zeros(16384, np.uint8)
    if a_mode is not None:
        image_a = k_major(x_codes, a_mode, leading, stride)
        if trans[0]:
            image_a = mn_major(np.ascontiguousarray(x_codes.T), a_mode, leading, stride)
    a, b = (
        1 << 46 | s << 62 | stride >> 4 << 32 | leading >> 4 << 16 | BASE + at >> 4
        for s, at in ((a_mode or 0, A_SHARED), (mode, B_SHARED))
    )
    half = list(HALF).index(kind) if types is None else types
    description = 1 << 4 | half << 7 | half << 10 | negate << 13 | trans[0] << 15 | trans[1] << 16
    description |= n // 8 << 17 | m // 16 << 24
    rows = np.arange(m) if m == 128 else np.arange(m) // 16 * 32 + np.arange(m) % 16 + lane
    words = np.zeros((128, 8 + n), np.uint32)  # what each lane has of A and of C
    words[rows, :8] = x_codes.view(np.uint32)
    words[rows, 8:] = c.view(np.uint32)
    memory = {"a": image_a, "b": image_b, "words": words}
    memory = {name: torch.from_numpy(v.view(np.int32).copy()) for name, v in memory.items()}
    out = torch.zeros(128, n)
    body = ONE + INIT + ALLOCATE.format(group=1, columns=COLUMNS) + OWN_LANES
    body += "mul.wide.u32 %d1,%t,16; mad.lo.u32 %r90,%t,16,%s;\n"
    for image, at in (("a", A_SHARED), ("b", B_SHARED)):
        for first in range(0, 16384, 2048):
            body += (
                f"add.s64 %d2,%d1,%{image}; ld.global.v4.b32 {registers(91, 4)},[%d2+{first}];\n"
            )
            body += f"st.shared.v4.b32 [%r90+{at + first}],{registers(91, 4)};\n"
    body += f"mul.wide.u32 %d2,%t,{4 * (8 + n)}; add.s64 %d2,%d2,%words;\n"
    for first in range(0, 8 + n, 8):
        for i in range(8):
            body += f"ld.global.b32 %r{i},[%d2+{4 * (first + i)}];\n"
        to = 128 + first if not first else first - 8
        body += f"tcgen05.st.sync.aligned.32x32b.x8.b32 [%r101+{to}], {registers(0, 8)};\n"
    body += "tcgen05.wait::st.sync.aligned;\nfence.proxy.async.shared::cta;\n"
    body += BEFORE + "bar.sync 0;\n" + AFTER
    body += f"mov.b64 %d10,{a:#x}; mov.b64 %d11,{b:#x}; mov.u32 %r98,{description:#x};\n"
    body += (
        f"add.u32 %r99,%r100,{lane << 16}; setp.{'eq' if accumulate else 'ne'}.u32 %q12,%t,%t;\n"
    )
    source = "[%r99+128]" if a_mode is None else "%d10"
    body += f"@%q14 tcgen05.mma.cta_group::1.kind::f16 [%r99], {source}, %d11, %r98, %q12;\n"
    body += "@%q14 tcgen05.commit.cta_group::1.mbarrier::arrive::one.shared::cluster.b64 [%s];\n"
    body += WAIT + AFTER + f"mul.wide.u32 %d3,%t,{4 * n}; add.s64 %d3,%d3,%out;\n"
    for first in range(0, n, 8):
        body += f"tcgen05.ld.sync.aligned.32x32b.x8.b32 {registers(0, 8)}, [%r101+{first}];\n"
        body += "tcgen05.wait::ld.sync.aligned;\n"
        for i in range(8):
            body += f"st.global.b32 [%d3+{4 * (first + i)}],%r{i};\n"
    body += FREE.format(group=1, columns=COLUMNS)
    assert edit[0] in body
    run(body.replace(*edit), {**memory, "out": out}, block=128, outputs="out")
    want = (-1 if negate else 1) * (x @ y.T) + (c if accumulate else 0)
    np.testing.assert_array_equal(out.numpy()[rows], want.astype(np.float32))
    others = np.setdiff1d(np.arange(128), rows)
    np.testing.assert_array_equal(out.numpy()[others], words[others, 8:].view(np.float32))


@pytest.mark.parametrize("kind", HALF)
@pytest.mark.parametrize(("m", "lane"), [(128, 0), (64, 0), (64, 16)])
def test_a_is_read_from_tensor_memory(m, lane, kind):
    multiply(m, 32, kind, lane=lane)


@pytest.mark.parametrize("mode", WIDTHS)
@pytest.mark.parametrize("m", [64, 128])
def test_both_are_read_from_shared_memory(m, mode):
    multiply(m, 64, "f16", mode, mode, leading=128)


@pytest.mark.parametrize("mode", WIDTHS)
def test_rows_and_columns_may_be_contiguous(mode):
    multiply(64, 64, "bf16", mode, mode, (1, 1), leading=2048, stride=256 if mode == 0 else 1024)


def test_an_accumulator_may_be_new_or_negated():
    multiply(64, 8, "f16", accumulate=False)
    multiply(64, 8, "f16", negate=1)


MMA = "@%q14 tcgen05.mma.cta_group::1.kind::f16 [%r99], [%r99+128]"


@pytest.mark.parametrize(
    ("old", "new", "kind"),
    [
        ("tcgen05.wait::st.sync.aligned;\n", "", Kind.EARLY_READ),
        ("fence.proxy.async.shared::cta;\n", "", Kind.PROXY),
        (MMA, MMA.replace("@%q14 ", ""), Kind.MANY_LANES),
        (MMA, MMA.replace("[%r99+128]", "[%r100+1048704]"), Kind.TMEM),
        (MMA, MMA.replace("[%r99]", "[%r99+252]"), Kind.TMEM),
        (MMA, MMA.replace("[%r99+128]", "[%r99+160]"), Kind.UNINITIALISED),
    ],
)
def test_faults_of_half_mmas(old, new, kind):
    with pytest.raises(Hazard) as raised:
        multiply(64, 8, "f16", edit=(old, new))
    assert raised.value.kind is kind


@pytest.mark.parametrize(("m", "n", "types"), [(128, 24, None), (64, 8, 2)])
def test_other_shapes_and_types_are_refused(m, n, types):
    with pytest.raises(Hazard) as raised:
        multiply(m, n, "f16", types=types)
    assert raised.value.kind in (Kind.DESCRIPTOR, Kind.TMEM)


def test_two_ctas_are_refused():
    with pytest.raises(UnsupportedInstruction):
        multiply(64, 8, "f16", edit=("mma.cta_group::1", "mma.cta_group::2"))
