"""Single faults in a grouped kernel's schedule, each of which the emulator or the output must show:
what is new in it beside the dense kernels of emulator/test_mutations.py.
"""

from dataclasses import dataclass
from functools import cache

import pytest
import torch
from edits import DROP, Edit
from grouped_problems import POISON, SQUARE, Routing, eighths, expected, operands, runs

from nvfp4.backends.cutedsl.gemm.launch import Launch
from nvfp4.backends.cutedsl.gemm.launch_grouped import plan_grouped
from nvfp4.backends.cutedsl.runtime.compile import FUNCTION, Compiled, compiled
from nvfp4.calls import GroupedMm
from nvfp4.emulator import Deadlock, Hazard, Kind, Options, load

pytestmark = runs

ROUTING = Routing("over three lanes", (0, 33, *[0] * 14, 5, 0, 140, *[0] * 14, 20, 7, 9), 4)
"""Experts of lanes 0, 1 and 2 of the warp that makes the table, most of them with no rows."""

WRONG = frozenset({"wrong output"})
ASTRAY = WRONG | {"deadlock", Kind.OUT_OF_BOUNDS, Kind.EARLY_READ, Kind.UNINITIALISED}
SHUFFLE = r"(shfl\.sync\.up\.b32 \t%r\d+, %r\d+, )"
COUNT = r"popc\.b32 \t(%r\d+), (%r\d+);"
ONE_MORE = r"\g<0>\nadd.s32 \t\1, \1, 1;"

# fmt: off
EDITS = (
    Edit("grouped", "offsets read early", r"griddepcontrol\.wait;", DROP,
         frozenset({Kind.GRID_DEPENDENCY}), "the kernel before may still write them", 3, (0,)),
    Edit("grouped", "the table read early", r"bar\.sync \t0;", DROP,
         frozenset(Kind) | {"deadlock"}, "the roles begin before it is written", 2, (0,)),
    Edit("grouped", "a neighbour's tiles not added", SHUFFLE + "1,", r"\g<1>0,",
         ASTRAY, "a prefix of twice the lane's own"),
    Edit("grouped", "two lanes' tiles not added", SHUFFLE + "2,", r"\g<1>3,",
         ASTRAY, "lane 2 lacks lane 0's"),
    Edit("grouped", "the next lane's experts loaded", COUNT, ONE_MORE,
         ASTRAY, "other weights than the epilogue stores", 4, (0,)),
    Edit("grouped", "the next expert loaded", COUNT, ONE_MORE,
         ASTRAY, "other weights than the epilogue stores", 4, (1,)),
    Edit("grouped", "the next expert stored", COUNT, ONE_MORE,
         ASTRAY, "to rows that are not the tile's", 4, (3,)),
)
# fmt: on


@dataclass(frozen=True)
class Prepared:
    launch: Launch
    code: Compiled
    want: torch.Tensor


@cache
def prepared() -> Prepared:
    n, k = 136, 320
    x = operands(ROUTING, n, k)
    alpha, row_scale = eighths(len(ROUTING.counts), 1), eighths(ROUTING.rows)
    want = expected(x, ROUTING, alpha, row_scale, None, torch.bfloat16)
    call = GroupedMm(x.a, x.b, x.a_scales, x.b_scales, alpha, x.offsets, row_scale)
    launch = plan_grouped(call, torch.empty_like(want), SQUARE, 3)
    return Prepared(launch, compiled(launch.kernel, "sm_100a"), want)


def outcomes(ptx: str) -> set[object]:
    """What is said of the kernel under a few schedules; nothing where the output is right."""
    launch, want = prepared().launch, prepared().want
    function = load(prepared().code.object_code, FUNCTION, ptx)
    said: set[object] = set()
    for seed, delay in enumerate((0, 30, 300, 1000)):
        out = launch.tensors["out"].fill_(POISON)
        options = Options(seed=seed, delay=delay, max_steps=500_000)
        try:
            function(*launch.args, 0, memory=launch.tensors, options=options)
            if not torch.equal(out.view(torch.int16), want.view(torch.int16)):
                said.add("wrong output")
        except Hazard as hazard:
            said.add(hazard.kind)
        except Deadlock:
            said.add("deadlock")
    return said


def test_the_kernel_as_it_is():
    assert not outcomes(prepared().code.ptx)


@pytest.mark.parametrize("edit", EDITS, ids=str)
def test_a_fault_is_noticed(edit):
    said = outcomes(edit.apply(prepared().code.ptx))
    assert said and said <= edit.caught, f"{edit}: {said}"
