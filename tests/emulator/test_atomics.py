"""What atomics do in the emulator, on shared memory and of every type."""

import numpy as np
import pytest
import torch
from emulated_ptx import STORE, run

from nvfp4.emulator import Hazard, Kind

ZERO = "mov.u32 %r1,0; mad.lo.u32 %r2,%t,4,%s; st.shared.b32 [%r2],%r1;\n"
COUNT = "and.b32 %r3,%t,15; mad.lo.u32 %r3,%r3,4,%s; mov.u32 %r4,1;\n"
HISTOGRAM = (
    ZERO
    + "bar.sync 0;\n"
    + COUNT
    + "atom.relaxed.sys.shared.add.u32 %r5,[%r3],%r4;\nbar.sync 1;\nld.shared.b32 %r0,[%r2];\n"
    + STORE
)


def test_warps_count_in_shared_memory():
    out = torch.zeros(128, dtype=torch.int32)
    for seed in range(3):
        run(HISTOGRAM, {"out": out}, block=128, seed=seed, outputs="out")
        assert out.tolist() == [8] * 16 + [0] * 112


@pytest.mark.parametrize("barrier", ["bar.sync 0;", "bar.sync 1;"])
def test_a_count_in_shared_memory_needs_its_barriers(barrier):
    with pytest.raises(Hazard) as raised:
        body = HISTOGRAM.replace(barrier, "")
        run(body, {"out": torch.zeros(128, dtype=torch.int32)}, block=128)
    assert raised.value.kind in (Kind.EARLY_READ, Kind.OVERWRITE, Kind.UNINITIALISED)


def test_an_ordinary_store_races_with_atomics():
    body = HISTOGRAM.replace("atom.relaxed.sys.shared.add.u32 %r5,", "st.shared.b32 ")
    body = body.replace("mov.u32 %r4,1;", "mov.u32 %r4,%t;")  # equal stores do not race
    with pytest.raises(Hazard) as raised:
        run(body, {"out": torch.zeros(128, dtype=torch.int32)}, block=128)
    assert raised.value.kind is Kind.OVERWRITE


OPERATIONS = {
    "add.f16": (np.float16, "noftz", lambda old, v: np.float16(old + v.sum(dtype=np.float64))),
    "add.f32": (np.float32, "", lambda old, v: old + v.sum()),
    "add.f64": (np.float64, "", lambda old, v: old + v.sum()),
    "add.u64": (np.uint64, "", lambda old, v: old + v.sum()),
    "min.s64": (np.int64, "", lambda old, v: min(old, v.min())),
    "max.s32": (np.int32, "", lambda old, v: max(old, v.max())),
    "and.b64": (np.uint64, "", lambda old, v: old & np.bitwise_and.reduce(v)),
}


@pytest.mark.parametrize("space", ["global", "shared", ""])
@pytest.mark.parametrize("operation", OPERATIONS)
def test_atomics_of_each_type(operation, space):
    """32 lanes on one word; the values are small integers, whose sums are exact."""
    dtype, modifier, meaning = OPERATIONS[operation]
    values, start = np.arange(1, 33).astype(dtype), np.array([7], dtype)
    size = values.itemsize
    register = {2: "%h", 4: "%r", 8: "%d"}[size] + "40"
    name, kind = operation.split(".")
    body = (
        f"mul.wide.u32 %d1,%t,{size}; add.s64 %d1,%d1,%x; ld.global.b{8 * size} {register},[%d1];\n"
    )
    full = ".".join(filter(None, ["red.relaxed.gpu", space, name, modifier, kind]))
    if space != "shared":
        body += f"{full} [%word],{register};\n"
    else:
        at = register.replace("40", "41")
        body += f"setp.eq.u32 %q0,%t,0; @%q0 ld.global.b{8 * size} {at},[%word];\n"
        body += f"@%q0 st.shared.b{8 * size} [%s],{at}; bar.warp.sync -1;\n"
        body += f"{full} [%s],{register}; bar.warp.sync -1;\n"
        body += f"@%q0 ld.shared.b{8 * size} {at},[%s]; @%q0 st.global.b{8 * size} [%word],{at};\n"
    word = torch.from_numpy(start.view(np.uint8).copy())
    run(body, {"x": torch.from_numpy(values.view(np.uint8).copy()), "word": word})
    assert word.numpy().view(dtype)[0] == meaning(start[0], values)


@pytest.mark.parametrize("kind", ["f16x2", "bf16x2"])
def test_atomic_sums_of_pairs(kind):
    dtype = {"f16x2": torch.float16, "bf16x2": torch.bfloat16}[kind]
    word = torch.tensor([0.5, -2.0], dtype=dtype)
    pair = torch.tensor([1.0, 2.0], dtype=dtype)
    body = f"ld.global.b32 %r1,[%pair]; red.global.add.noftz.{kind} [%word],%r1;\n"
    run(body, {"word": word, "pair": pair})
    assert word.tolist() == [32.5, 62.0]


def test_vectors_are_added_atomically():
    word = torch.zeros(4)
    body = "cvt.rn.f32.u32 %r1,%t; mov.f32 %r2,0f3F800000;\n"
    body += "red.relaxed.gpu.global.add.v4.f32 [%word],{%r1,%r2,%r1,%r2};\n"
    run(body, {"word": word})
    assert word.tolist() == [496.0, 32.0, 496.0, 32.0]


def test_counters_wrap_around():
    """inc starts again above its limit; dec starts from it below zero."""
    word, before = torch.tensor([0], dtype=torch.int32), torch.zeros(32, dtype=torch.int32)
    run("atom.global.inc.u32 %r0,[%word],4;\n" + STORE, {"word": word, "out": before})
    assert before.tolist() == [i % 5 for i in range(32)]
    word.zero_()
    run("atom.global.dec.u32 %r0,[%word],4;\n" + STORE, {"word": word, "out": before})
    assert before.tolist() == [-i % 5 for i in range(32)]


def test_an_exchange_in_shared_memory_locks():
    """The threads of four warps pass one word on by compare and swap."""
    body = "setp.eq.u32 %q0,%t,0; mov.u32 %r1,0; @%q0 st.shared.b32 [%s],%r1; bar.sync 0;\n"
    body += "add.u32 %r2,%t,1; TRY: atom.shared.cas.b32 %r3,[%s],%t,%r2;\n"
    body += "setp.ne.u32 %q1,%r3,%t; @%q1 bra TRY;\nmov.u32 %r0,%r3;\n" + STORE
    out = torch.zeros(128, dtype=torch.int32)
    run(body, {"out": out}, block=128, outputs="out")
    assert out.tolist() == list(range(128))


# The threads of each of two CTAs write a word. The CTA that counts second sums up both parts.
LAST_ONE = """mov.u32 %r1,%ctaid.x; mad.lo.u32 %r2,%r1,64,%t; mul.wide.u32 %d1,%r2,4;
add.s64 %d1,%d1,%parts; add.u32 %r3,%t,1; st.global.b32 [%d1],%r3; bar.sync 0;
setp.eq.u32 %q0,%t,0; mov.u32 %r4,1; @%q0 atom.global.gpu.acq_rel.add.u32 %r5,[%count],%r4;
@%q0 st.shared.b32 [%s],%r5; bar.sync 0; ld.shared.b32 %r5,[%s]; setp.ne.u32 %q1,%r5,1;
@%q1 bra E; mul.wide.u32 %d1,%t,4; add.s64 %d2,%d1,%parts; ld.global.b32 %r6,[%d2];
ld.global.b32 %r7,[%d2+256]; add.u32 %r0,%r6,%r7; add.s64 %d2,%d1,%out;
st.global.b32 [%d2],%r0; E:
"""


@pytest.mark.parametrize("seed", range(4))
def test_a_barrier_passes_an_acquire_on(seed):
    """One thread acquires the other CTA's release, and all warps then read that CTA's words."""

    def launch(body: str) -> list[int]:
        memory = {
            "parts": torch.zeros(128, dtype=torch.int32),
            "count": torch.zeros(1, dtype=torch.int32),
            "out": torch.zeros(64, dtype=torch.int32),
        }
        run(body, memory, block=64, grid=(2, 1, 1), seed=seed)
        return memory["out"].tolist()

    assert launch(LAST_ONE) == [2 * (t + 1) for t in range(64)]
    for old, new in (("acq_rel", "relaxed"), ("acq_rel", "release"), ("acq_rel", "acquire")):
        with pytest.raises(Hazard) as raised:
            launch(LAST_ONE.replace(old, new))
        assert raised.value.kind is Kind.RACE
