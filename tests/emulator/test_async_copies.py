"""What cp.async does in the emulator, and the faults of copies that nobody waits for."""

import pytest
import torch
from emulated_ptx import ONE, WAIT, run

from nvfp4.emulator import Hazard, Kind, UnsupportedInstruction

AT = "mad.lo.u32 %r1,%t,16,%s; add.u32 %r1,%r1,1024; mul.wide.u32 %d1,%t,16; add.s64 %d1,%d1,%x;\n"
"""%r1 and %d1: the thread's 16 bytes of shared memory, and of x."""
COPY = "cp.async.cg.shared.global [ %r1 + 0 ], [ %d1 + 0 ], 0x10;\n"
COMMIT, LAST = "cp.async.commit_group;\n", "cp.async.wait_group 0;\n"
BACK = "ld.shared.v4.b32 {%r5,%r6,%r7,%r8},[%r1];\n"
OUT = "mul.wide.u32 %d2,%t,16; add.s64 %d2,%d2,%out; st.global.v4.b32 [%d2],{%r5,%r6,%r7,%r8};\n"


def launch(
    body: str, threads: int = 64, seed: int = 0, **options
) -> tuple[torch.Tensor, torch.Tensor]:
    x = torch.arange(1, 4 * threads + 1, dtype=torch.int32).reshape(threads, 4)
    out = torch.zeros_like(x)
    run(body, {"x": x, "out": out}, block=threads, delay=500, seed=seed, **options)
    return x, out


@pytest.mark.parametrize("wait", [COMMIT + LAST, "cp.async.wait_all;\n"])
@pytest.mark.parametrize("size", [4, 8, 16])
def test_copies_come(size, wait):
    level = "cg" if size == 16 else "ca"
    body = AT + "mov.u32 %r9,0; st.shared.v4.b32 [%r1],{%r9,%r9,%r9,%r9};\n"
    body += f"cp.async.{level}.shared.global [%r1], [%d1], {size};\n" + wait + BACK + OUT
    x, out = launch(body)
    x[:, size // 4 :] = 0
    assert torch.equal(out, x)


@pytest.mark.parametrize("seed", range(3))
def test_bytes_behind_the_source_size_are_zero(seed):
    """Thread i copies i % 17 bytes; one that copies none may name no memory at all."""
    body = AT + "rem.u32 %r9,%t,17; setp.eq.u32 %q0,%r9,0; selp.b64 %d1,0,%d1,%q0;\n"
    body += COPY.replace("0x10", "0x10, %r9") + COMMIT + LAST + BACK + OUT
    x, out = launch(body, seed=seed)
    want = x.view(torch.uint8).reshape(64, 16).clone()
    for i in range(64):
        want[i, i % 17 :] = 0
    assert torch.equal(out.view(torch.uint8).reshape(64, 16), want)


def test_an_ignored_source_gives_zeros():
    body = AT + "and.b32 %r9,%t,1; setp.eq.u32 %q0,%r9,1; @%q0 mov.b64 %d1,0;\n"
    body += COPY.replace("0x10", "0x10, %q0") + COMMIT + LAST + BACK + OUT
    x, out = launch(body)
    x[1::2] = 0
    assert torch.equal(out, x)


def test_lanes_without_the_predicate_copy_nothing():
    body = AT + "mov.u32 %r9,7; st.shared.v4.b32 [%r1],{%r9,%r9,%r9,%r9};\n"
    body += "and.b32 %r9,%t,1; setp.eq.u32 %q0,%r9,1; @%q0 mov.b64 %d1,0;\n"
    x, out = launch(body + "@!%q0 " + COPY + COMMIT + LAST + BACK + OUT)
    x[1::2] = 7
    assert torch.equal(out, x)


@pytest.mark.parametrize("seed", range(3))
def test_groups_end_in_order(seed):
    """Three groups; a wait for all but the youngest two lets the first one be read."""
    body = AT + COPY + COMMIT
    for i in (1, 2):
        body += f"add.u32 %r{1 + i},%r1,{2048 * i};\n" + COPY.replace("%r1", f"%r{1 + i}") + COMMIT
    x, out = launch(body + "cp.async.wait_group 2;\n" + BACK + OUT, seed=seed)
    assert torch.equal(out, x)
    with pytest.raises(Hazard) as raised:
        launch(body + "cp.async.wait_group 2;\n" + BACK.replace("%r1]", "%r2]"), seed=seed)
    assert raised.value.kind is Kind.EARLY_READ
    launch(body + "cp.async.wait_group 1;\n" + BACK.replace("%r1]", "%r2]"), seed=seed)


OTHER = "xor.b32 %r9,%t,32; mad.lo.u32 %r9,%r9,16,%s;\n" + BACK.replace("%r1]", "%r9+1024]")
"""Each warp reads what the other one has copied."""
SHARED = AT + COPY + COMMIT + LAST + "bar.sync 0;\n" + OTHER


@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize(
    ("body", "old", "new", "kinds"),
    [
        (SHARED, LAST, "", [Kind.EARLY_READ]),
        (SHARED, LAST, "cp.async.wait_group 1;\n", [Kind.EARLY_READ]),
        (SHARED, COMMIT, "", [Kind.EARLY_READ]),
        (SHARED, "bar.sync 0;\n", "", [Kind.EARLY_READ, Kind.UNINITIALISED]),
        (SHARED, COPY, COPY + COPY, [Kind.OVERWRITE]),
        (SHARED + "bar.sync 0;\n" + COPY + COMMIT + LAST, OTHER + "bar.sync 0;\n", OTHER,
         [Kind.OVERWRITE, Kind.EARLY_READ]),
        (SHARED, LAST, LAST + COPY, [Kind.EARLY_READ]),
        (SHARED, "[ %d1 + 0 ]", "[%d1+8192]", [Kind.OUT_OF_BOUNDS]),
        (SHARED, "[ %d1 + 0 ]", "[%d1+4]", [Kind.MISALIGNED, Kind.OUT_OF_BOUNDS]),
        (SHARED, "[ %r1 + 0 ]", "[%r1+4]", [Kind.MISALIGNED]),
        (SHARED, "[ %r1 + 0 ]", "[%r1+65536]", [Kind.OUT_OF_BOUNDS]),
        (SHARED, "0x10", "0x10, 17", [Kind.OUT_OF_BOUNDS]),
    ],
)  # fmt: skip
def test_faults_of_copies(body, old, new, kinds, seed):
    assert old in body
    launch(body, seed=seed)
    with pytest.raises(Hazard) as raised:
        launch(body.replace(old, new, 1), seed=seed)
    assert raised.value.kind in kinds


ARRIVE = "cp.async.mbarrier.arrive.noinc.shared.b64 [%s];\n"
SIGNALLED = (
    ONE
    + "@%q14 mbarrier.init.shared.b64 [%s], 64;\nbar.sync 0;\n"
    + AT + COPY + ARRIVE + WAIT + OTHER
)  # fmt: skip


@pytest.mark.parametrize("seed", range(3))
def test_copies_arrive_at_an_mbarrier(seed):
    launch(SIGNALLED, seed=seed)
    counted = SIGNALLED.replace(".noinc", "").replace(
        WAIT, "mbarrier.arrive.shared.b64 _,[%s];\n" + WAIT
    )  # without .noinc the 64 arrivals are counted in addition
    launch(counted, seed=seed)
    with pytest.raises(Hazard) as raised:
        launch(SIGNALLED.replace(ARRIVE, "mbarrier.arrive.shared.b64 _,[%s];\n"), seed=seed)
    assert raised.value.kind is Kind.EARLY_READ
    with pytest.raises(Hazard) as raised:
        launch(SIGNALLED.replace(COPY + ARRIVE, ARRIVE + COPY), seed=seed)
    assert raised.value.kind is Kind.EARLY_READ


@pytest.mark.parametrize(
    "form", ["cg.shared.global [%r1],[%d1],8", "ca.shared.global [%r1],[%d1],12"]
)
def test_other_sizes_are_refused(form):
    with pytest.raises(UnsupportedInstruction):
        launch(AT + f"cp.async.{form};\n")
