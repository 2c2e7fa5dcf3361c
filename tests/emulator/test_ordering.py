"""Scope and strength of arrivals, waits and fences, and tcgen05.fence: what orders what.

PTX ISA: Memory Consistency Model; tcgen05 Memory Consistency Model, canonical synchronization
patterns.
"""

import pytest
import torch
from emulated_ptx import (
    AFTER,
    ALLOCATE,
    AT,
    BEFORE,
    FREE,
    INIT,
    ONE,
    OWN_STORE,
    PEERS,
    RANKS,
    READY,
    STORE,
    run,
)

from nvfp4.emulator import Hazard, Kind

# CTA 0 writes to its shared memory and arrives at CTA 1's mbarrier; CTA 1 waits, and reads it.
MESSAGE = (
    ONE + AT + RANKS + INIT + PEERS + "mov.u32 %r0,7; setp.eq.u32 %q0,%r1,0; @!%q0 bra READER;\n"
    "mapa.shared::cluster.u32 %r4,%s,1; @%q14 st.shared.b32 [%r110],%r0;\n"
    "{fence} @%q14 mbarrier.arrive.{arrive}.shared::cluster.b64 _,[%r4]; bra E;\n"
    "READER: W: mbarrier.try_wait.parity.{wait}.shared::cta.b64 %q13,[%s],0; @!%q13 bra W;\n"
    "{after} mapa.shared::cluster.u32 %r4,%r110,0; ld.shared::cluster.b32 %r0,[%r4];\nE:"
    + PEERS + OWN_STORE
)  # fmt: skip
TWO = {"grid": (2, 1, 1), "cluster": (2, 1, 1)}
FULL = "fence.acq_rel.cluster;"
RELEASE = "fence.release.sync_restrict::shared::cta.cluster;"
ACQUIRE = "fence.acquire.sync_restrict::shared::cluster.cluster;"
ORDERED = {
    "release and acquire": ("", "release.cluster", "acquire.cluster", ""),
    "fences and relaxed": (FULL, "relaxed.cluster", "relaxed.cluster", FULL),
    "fences of shared memory": (RELEASE, "relaxed.cluster", "relaxed.cluster", ACQUIRE),
    "a fence and an acquire": ("fence.sc.sys;", "relaxed.cluster", "acquire.cluster", ""),
}
UNORDERED = {
    "a release in the CTA": ("", "release.cta", "acquire.cluster", ""),
    "an acquire in the CTA": ("", "release.cluster", "acquire.cta", ""),
    "relaxed alone": ("", "relaxed.cluster", "acquire.cluster", ""),
    "a relaxed wait alone": ("", "release.cluster", "relaxed.cluster", ""),
    "a fence of the CTA": ("fence.acq_rel.cta;", "relaxed.cluster", "acquire.cluster", ""),
    "a fence of the reader's CTA": ("", "release.cluster", "relaxed.cluster", "fence.acq_rel.cta;"),
    "an arrival in the CTA": (FULL, "relaxed.cta", "acquire.cluster", ""),
    "a wait in the CTA": ("", "release.cluster", "relaxed.cta", FULL),
    "an acquire as release": ("fence.acquire.cluster;", "relaxed.cluster", "acquire.cluster", ""),
    "a release as acquire": ("", "release.cluster", "relaxed.cluster", "fence.release.cluster;"),
    "tcgen05.fence": (BEFORE, "relaxed.cluster", "acquire.cluster", AFTER),
}


def message(fence: str, arrive: str, wait: str, after: str) -> str:
    return MESSAGE.format(fence=fence, arrive=arrive, wait=wait, after=after)


@pytest.mark.parametrize("how", ORDERED)
@pytest.mark.parametrize("seed", range(3))
def test_what_orders_a_message_to_another_cta(how, seed):
    out = torch.zeros(64, dtype=torch.int32)
    run(message(*ORDERED[how]), {"out": out}, seed=seed, **TWO)
    assert (out == 7).all()


@pytest.mark.parametrize("how", UNORDERED)
@pytest.mark.parametrize("seed", range(3))
def test_what_does_not_order_a_message_to_another_cta(how, seed):
    with pytest.raises(Hazard, match="ordinary accesses to shared memory") as raised:
        run(message(*UNORDERED[how]), {"out": torch.zeros(64).int()}, seed=seed, **TWO)
    assert raised.value.kind is Kind.EARLY_READ and "ld.shared" in raised.value.text


def test_a_release_of_the_own_shared_memory_does_not_order_reads_of_a_peers():
    """CTA 1 reads CTA 0's memory, and CTA 0 writes over it."""
    body = (
        ONE + AT + RANKS + INIT + "mov.u32 %r0,7; st.shared.b32 [%r110],%r0;\n" + PEERS
        + "setp.eq.u32 %q0,%r1,1; @!%q0 bra WRITER;\n"
        "mapa.shared::cluster.u32 %r4,%r110,0; ld.shared::cluster.b32 %r0,[%r4];\n"
        f"mapa.shared::cluster.u32 %r4,%s,0; {FULL}\n"
        "@%q14 mbarrier.arrive.relaxed.cluster.shared::cluster.b64 _,[%r4]; bra E;\n"
        "WRITER: W: mbarrier.try_wait.parity.acquire.cluster.shared.b64 %q13,[%s],0;\n"
        "@!%q13 bra W;\n"
        "st.shared.b32 [%r110],%r1;\nE:" + PEERS + OWN_STORE
    )  # fmt: skip
    run(body, {"out": torch.zeros(64, dtype=torch.int32)}, **TWO)
    with pytest.raises(Hazard, match="another CTA's shared memory") as raised:
        run(body.replace(FULL, RELEASE), {"out": torch.zeros(64, dtype=torch.int32)}, **TWO)
    assert raised.value.kind is Kind.OVERWRITE


@pytest.mark.parametrize("access", ["ld.shared::cluster.b32 %r0,[%r4];", "mbarrier.arrive"])
def test_a_cta_does_not_exit_before_what_a_peer_does_in_its_memory(access):
    """It may still be on its way, even if it has come under this schedule."""
    if access == "mbarrier.arrive":
        access = "@%q14 mbarrier.arrive.shared::cluster.b64 _,[%r5];"
    body = (
        ONE + AT + RANKS + READY + "mov.u32 %r0,7; st.shared.b32 [%r110],%r0;\n" + PEERS
        + "mapa.shared::cluster.u32 %r4,%r110,%r2; mapa.shared::cluster.u32 %r5,%s,%r2;\n" + access
    )  # fmt: skip
    run(body + PEERS, {}, **TWO)
    for seed in range(4):
        with pytest.raises(Hazard) as raised:
            run(body, {}, seed=seed, **TWO)
        assert raised.value.kind is Kind.EXITED


# Warp 4 writes to tensor memory; warp 0, which reaches the same lanes, waits for it and reads.
WRITTEN = "tcgen05.wait::st.sync.aligned;\n"
ARRIVE, TRY_WAIT = "mbarrier.arrive.relaxed.cluster", "mbarrier.try_wait.parity.relaxed.cluster"
HANDED_OVER = (
    ONE + INIT + ALLOCATE.format(group=1, columns=32)
    + "mov.u32 %r0,7; setp.ge.u32 %q0,%t,128; @%q0 bra WRITER;\n"
    "setp.lt.u32 %q0,%t,32; @%q0 bra READER; bra E;\n"
    "WRITER: tcgen05.st.sync.aligned.32x32b.x1.b32 [%r100],{%r0};\n" + WRITTEN + BEFORE
    + f"setp.eq.u32 %q1,%t,128; @%q1 {ARRIVE}.shared.b64 _,[%s]; bra E;\n"
    f"READER: W: {TRY_WAIT}.shared.b64 %q13,[%s],0; @!%q13 bra W;\n" + AFTER
    + "tcgen05.ld.sync.aligned.32x32b.x1.b32 {%r0},[%r100];\n"
    "tcgen05.wait::ld.sync.aligned;\n" + STORE + "E:" + FREE.format(group=1, columns=32)
)  # fmt: skip
WARPS = {"block": 160}


@pytest.mark.parametrize("arrive", [ARRIVE, "mbarrier.arrive"])
@pytest.mark.parametrize("wait", [TRY_WAIT, "mbarrier.try_wait.parity"])
def test_tensor_memory_is_handed_over_by_fences_and_an_arrival_of_any_strength(arrive, wait):
    out = torch.zeros(32, dtype=torch.int32)
    run(HANDED_OVER.replace(ARRIVE, arrive).replace(TRY_WAIT, wait), {"out": out}, **WARPS)
    assert (out == 7).all()


@pytest.mark.parametrize("missing", [BEFORE + "setp", AFTER + "tcgen05.ld", WRITTEN])
@pytest.mark.parametrize("arrive", [ARRIVE, "mbarrier.arrive"])
def test_no_release_or_acquire_stands_for_tcgen05_fence(missing, arrive):
    """Nor does the fence order a store that has not been waited for."""
    body = HANDED_OVER.replace(ARRIVE, arrive).replace(TRY_WAIT, "mbarrier.try_wait.parity")
    kept = missing.removeprefix(BEFORE).removeprefix(AFTER) if missing != WRITTEN else ""
    body = body.replace(missing, kept, 1)
    out = torch.zeros(32, dtype=torch.int32)
    with pytest.raises(Hazard, match="accesses to tensor memory") as raised:
        run(body, {"out": out}, **WARPS)
    assert raised.value.kind in (Kind.EARLY_READ, Kind.OVERWRITE)
    if missing != WRITTEN:  # what CUTLASS relies on
        run(body, {"out": out}, tcgen05_fences=False, **WARPS)
