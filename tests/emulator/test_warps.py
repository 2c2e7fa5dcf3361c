"""What a warp does together in the emulator: moves, divergence, shuffles, votes."""

import pytest
import torch
from emulated_ptx import STORE, run
from emulated_values import ALL, in_lanes


def test_moves_pack_and_unpack():
    body = """
    mov.b32 {%h0,%h1}, %t; mov.b32 %r1, {%h1,%h0}; mov.b64 %d0, {%r1,%t}; mov.b64 {%r2,_}, %d0;
    mov.b64 {_,%r3}, %d0; mov.b64 %d2, 0x1122334455667788; mov.b64 {%r4,%r5}, %d2;
    add.u32 %r0,%r2,%r3; add.u32 %r0,%r0,%r5;
    """
    assert in_lanes(body) == [(lane << 16) + lane + 0x11223344 for lane in range(32)]


@pytest.mark.parametrize(
    "body, want",
    [
        ("setp.lt.u32 %q0,%t,5; @%q0 bra L; mov.u32 %r0,1; bra J; L: mov.u32 %r0,2; J: ",
         [2] * 5 + [1] * 27),
        ("mov.u32 %r0,0; L: add.u32 %r0,%r0,1; setp.le.u32 %q0,%r0,%t; @%q0 bra L;",
         list(range(1, 33))),
        # the lanes are together again after the branch, and after a loop that they leave in turn
        ("setp.lt.u32 %q0,%t,5; @%q0 bra L; activemask.b32 %r1; bra J;\n"
         "L: activemask.b32 %r1; J: activemask.b32 %r2; sub.u32 %r0,%r2,%r1;",
         [ALL - 31] * 5 + [31] * 27),
        ("mov.u32 %r1,0; L: add.u32 %r1,%r1,1; setp.le.u32 %q0,%r1,%t; @%q0 bra L;\n"
         "activemask.b32 %r0;",
         [ALL] * 32),
        # a branch within a branch, and lanes that leave for good
        ("and.b32 %r1,%t,1; setp.eq.u32 %q0,%r1,0; and.b32 %r2,%t,2; setp.eq.u32 %q1,%r2,0;\n"
         "mov.u32 %r0,0; @%q0 bra E; add.u32 %r0,%r0,1; @%q1 bra I; add.u32 %r0,%r0,10;\n"
         "I: add.u32 %r0,%r0,100; E: activemask.b32 %r3; popc.b32 %r3,%r3;\n"
         "mad.lo.u32 %r0,%r3,1000,%r0;",
         [32000, 32101, 32000, 32111] * 8),
        ("setp.ge.u32 %q0,%t,8; @!%q0 bra GO; ret; GO: activemask.b32 %r0;",
         [255] * 8 + [ALL] * 24),
        # registers of lanes that do not run stay
        ("mov.u32 %r0,7; setp.eq.u32 %q0,%t,3; @%q0 mov.u32 %r0,9; @!%q0 add.u32 %r0,%r0,%t;",
         [7 + lane if lane != 3 else 9 for lane in range(32)]),
    ],
    ids=["if", "loop", "joined", "left in turn", "nested", "exit", "guard"],
)  # fmt: skip
def test_divergence(body, want):
    assert in_lanes(body) == want


def shuffled(mode: str, b: int, c: int) -> list[tuple[int, bool]]:
    """(source lane, whether in range) of each lane: the pseudocode of PTX ISA, "shfl.sync"."""
    out = []
    for lane in range(32):
        clamp, segment = c & 31, c >> 8 & 31
        top = lane & segment | clamp & ~segment
        if mode == "up":
            j = lane - b
            inside = j >= top
        elif mode == "idx":
            j = lane & segment | b & ~segment
            inside = j <= top
        else:
            j = lane + b if mode == "down" else lane ^ b
            inside = j <= top
        out.append((j if inside else lane, inside))
    return out


@pytest.mark.parametrize("b", [0, 1, 5, 16, 31])
@pytest.mark.parametrize(
    "mode, c",
    [
        ("idx", 31),
        ("idx", 0x181F),
        ("up", 0),
        ("up", 0x1800),
        ("down", 31),
        ("down", 0x1C1F),
        ("bfly", 31),
    ]
    + [("bfly", 0x1003)],
)
def test_shuffles(mode, c, b):
    body = f"""
    mad.lo.u32 %r1,%t,3,5; shfl.sync.{mode}.b32 %r0|%q0,%r1,{b},{c},-1;
    shfl.sync.{mode}.b32 %r2,%r1,{b},{c},-1;
    @%q0 add.u32 %r0,%r0,1000; sub.u32 %r2,%r0,%r2; add.u32 %r0,%r0,%r2;
    """
    want = [3 * lane + 5 + 2000 * inside for lane, inside in shuffled(mode, b, c)]
    assert in_lanes(body) == want


def test_shuffles_by_a_lane_of_each():
    want = [31 - lane for lane in range(32)]
    assert in_lanes("sub.u32 %r1,31,%t; shfl.sync.idx.b32 %r0,%t,%r1,31,-1;") == want


@pytest.mark.parametrize(
    "instruction, want",
    [
        ("vote.sync.ballot.b32 %r0,%q0,-1;", 0b111111),
        ("vote.sync.ballot.b32 %r0,!%q0,-1;", ALL - 63),
        ("vote.sync.any.pred %q1,%q0,-1; selp.u32 %r0,1,0,%q1;", 1),
        ("vote.sync.all.pred %q1,%q0,-1; selp.u32 %r0,1,0,%q1;", 0),
        ("vote.sync.uni.pred %q1,%q0,-1; selp.u32 %r0,1,0,%q1;", 0),
        ("setp.lt.u32 %q2,%t,99; vote.sync.all.pred %q1,%q2,-1; selp.u32 %r0,1,0,%q1;", 1),
        ("setp.gt.u32 %q2,%t,99; vote.sync.uni.pred %q1,%q2,-1; selp.u32 %r0,1,0,%q1;", 1),
        ("setp.gt.u32 %q2,%t,99; vote.sync.any.pred %q1,%q2,-1; selp.u32 %r0,1,0,%q1;", 0),
        ("redux.sync.add.u32 %r0,%t,-1;", 496),
        ("sub.s32 %r1,%t,7; redux.sync.min.s32 %r0,%r1,-1;", ALL - 6),
        ("sub.s32 %r1,%t,7; redux.sync.max.s32 %r0,%r1,-1;", 24),
        ("sub.s32 %r1,%t,7; redux.sync.max.u32 %r0,%r1,-1;", ALL),
        ("or.b32 %r1,%t,64; redux.sync.and.b32 %r0,%r1,-1;", 64),
        ("redux.sync.or.b32 %r0,%t,-1;", 31),
        ("add.u32 %r1,%t,%t; redux.sync.xor.b32 %r0,%r1,-1;", 0),
        ("elect.sync %r0|%q1,-1;", 0),
    ],
    ids=lambda value: value.split(";")[-2].split()[0] if isinstance(value, str) else None,
)
def test_what_a_warp_does_together(instruction, want):
    assert in_lanes(f"setp.lt.u32 %q0,%t,6; {instruction}") == [want] * 32


def test_one_lane_is_elected_of_those_that_run():
    body = "mov.u32 %r0,0; elect.sync _|%q1,-1; @%q1 mov.u32 %r0,1;"
    assert in_lanes(body) == [1] + [0] * 31
    body = """mov.u32 %r0,0; setp.ge.u32 %q0,%t,20; @!%q0 bra J;
    elect.sync %r1|%q1,0xFFF00000; selp.u32 %r0,%r1,7,%q1; J: """
    assert in_lanes(body) == [0] * 20 + [20] + [7] * 11


def test_a_part_of_a_warp_votes_by_itself():
    body = """setp.ge.u32 %q0,%t,20; @!%q0 bra J; setp.gt.u32 %q1,%t,24;
    vote.sync.ballot.b32 %r0,%q1,0xFFF00000; bra E; J: redux.sync.add.u32 %r0,%t,0xFFFFF; E: """
    assert in_lanes(body) == [190] * 20 + [0xFE000000] * 12


@pytest.mark.parametrize(
    ("values", "form", "want"),
    [
        ([1.5, -2.0, 3.0], "max", 3.0),
        ([1.5, -2.0, 3.0], "min", -2.0),
        ([1.5, -4.0, 3.0], "max.abs", 4.0),
        ([-0.0, 0.0], "max", 0.0),
        ([0.0, -0.0], "min", -0.0),
        ([float("nan"), -1.0], "max", -1.0),
        ([float("nan"), -1.0], "max.NaN", None),
        ([float("nan"), float("nan")], "min", None),
        ([-float("inf"), 1e-45], "min", -float("inf")),
    ],
)
def test_floats_are_reduced_over_a_warp(values, form, want):
    """None stands for the canonical NaN."""
    x = torch.tensor((values * 32)[:32])
    out = torch.zeros(32)
    body = "mul.wide.u32 %d1,%t,4; add.s64 %d1,%d1,%x; ld.global.b32 %r1,[%d1];\n"
    run(body + f"redux.sync.{form}.f32 %r0,%r1,-1;\n" + STORE, {"x": x, "out": out})
    bits = torch.tensor([want or 0.0]).view(torch.int32).item()
    if want is not None and str(want) == "-0.0":
        bits = -(2**31)
    assert out.view(torch.int32).tolist() == [0x7FFFFFFF if want is None else bits] * 32
