"""The order of loads, fences, arrivals and stores in the machine code of the sm_100 kernels.

The kernels' inline asm has no memory clobber, so nothing but ptxas's own care keeps a store on its
side of an arrival. What has to be in order is read from the SASS here.
"""

import re
from dataclasses import replace
from functools import cache

import pytest

from nvfp4.backends.cutedsl.gemm.config import Alpha, Epilogue, Glu, Kernel, Tile
from nvfp4.backends.cutedsl.runtime.compile import compiled
from nvfp4.bench import cubin

pytestmark = [pytest.mark.usefixtures("compiles")]

SEGMENTS = Alpha.SEGMENTS
KERNELS = {
    "one CTA": Kernel(Tile(128, 128), Epilogue(bias=True)),
    "pair": Kernel(Tile(256, 256, 2)),
    "multicast": Kernel(Tile(256, 128, 4, 2)),
    "row scale": Kernel(Tile(256, 192, 2), Epilogue(row_scale=True)),
    "elements": Kernel(Tile(128, 16, swapped=True), Epilogue(tma_store=False)),
    "split-K": Kernel(Tile(128, 16, split_k=8, swapped=True), Epilogue(tma_store=False)),
    "grouped": Kernel(Tile(256, 256, 2), Epilogue(alpha=SEGMENTS), grouped=True),
    "fused": Kernel(Tile(256, 256, 2), Epilogue(tma_store=False, glu=Glu()), grouped=True),
}
CONSTANT = {
    f"{name}, constant weights": replace(KERNELS[name], constant_weights=True)
    for name in ("one CTA", "pair", "multicast", "elements", "split-K")
}
BY_TMA = ["one CTA", "pair", "multicast", "row scale", "grouped"]

WORDS = {
    "LDTM": "load_tmem",
    "F2FP": "convert",
    "FMUL2": "multiply",
    "FFMA2": "multiply",
    "STSM": "store_shared",
    "STS": "store_shared",
    "STG": "store_global",
    "LD": "load_peer",
    "FENCE.VIEW.ASYNC": "fence",
    "MEMBAR.ALL.GPU": "fence_gpu",
    "SYNCS.ARRIVE": "arrive",
    "SYNCS.PHASECHK": "wait",
    "UTMALDG": "tma_load",
    "UTMASTG": "tma_store",
    "UTCCP": "copy",
    "UTCOMMA": "mma",
    "UTCBAR": "commit",
    "ACQBULK": "grid_over",
    "PREEXIT": "next_grid",
}
"""The instructions whose order matters."""


@cache
def flow(name: str) -> str:
    """A kernel's instructions in their order, as the words above."""
    code = cubin.sass(compiled((KERNELS | CONSTANT)[name], "sm_100a").cubin)
    words = (next((w for o, w in WORDS.items() if i.is_a(o)), "") for i in code)
    return " ".join(word for word in words if word)


def epilogue(name: str) -> str:
    """What follows the last commit: the epilogue, before the retries of waits."""
    return flow(name).rpartition("commit ")[2]


@pytest.mark.parametrize("name", KERNELS)
def test_the_accumulator_is_given_back_after_its_loads_before_anything_else(name):
    """Where accumulators overlap, the next tile's MMAs wait for the first subtile alone."""
    code = epilogue(name)
    before, _, after = code.partition("arrive")
    assert re.search(r"(load_tmem )+$", before), "what is between the last load and the arrival"
    if KERNELS[name].tile.columns < 256:
        assert "load_tmem" not in after
    else:
        assert re.search(r"wait (load_tmem )+$", before), "more than the first subtile"


@pytest.mark.parametrize("name", BY_TMA)
def test_output_is_written_then_fenced_then_stored_by_tma(name):
    code = re.sub(r"load_tmem|multiply|convert|arrive|load_peer|wait", "", epilogue(name))
    stores = re.findall(r"(\w+)\s+(\w+)\s+tma_store", code)
    assert len(stores) == code.count("tma_store")
    assert set(stores) == {("store_shared", "fence")}


def test_partial_sums_are_written_then_released_then_read():
    code = epilogue("split-K")
    order = r"arrive (store_shared )+fence (arrive ){8}wait (load_peer )+"
    assert len(re.findall(order, code)) == 1
    assert code.count("store_shared ") == 16, "the partials, and nothing else"


@pytest.mark.parametrize("name", KERNELS)
def test_stages_are_waited_for_then_announced_then_loaded(name):
    assert re.search(r"wait arrive (tma_load ?){4,}", flow(name))


@pytest.mark.parametrize("name", KERNELS)
def test_stages_are_waited_for_then_copied_then_multiplied_then_committed(name):
    code = flow(name)
    steps = re.findall(r"wait (?:copy )+(?:mma ){4}commit", code)
    assert steps and 4 * len(steps) == code.count("mma")


@pytest.mark.parametrize("name", KERNELS)
def test_no_arrival_waits_for_global_memory(name):
    """Split-K's last barrier does, after everything has been stored: the peers' reads are over."""
    code = flow(name)
    if name != "split-K":
        assert "fence_gpu" not in code
    else:
        assert re.search(r"store_global fence_gpu", code) and code.count("fence_gpu") == 1


@pytest.mark.parametrize("name", [*KERNELS, *CONSTANT])
def test_constant_weights_are_loaded_before_the_grid_before_is_over(name):
    """Two TMA loads, of weights and of their scales; without that promise none.

    The next grid may start only after that: what it takes for constant, a grid before this one may
    have written.
    """
    before, _, after = flow(name).partition("next_grid")[0].rpartition("grid_over")
    assert before.count("tma_load") == (2 if name in CONSTANT else 0)
    assert after.count("tma_load") >= 4 and "grid_over" not in after
