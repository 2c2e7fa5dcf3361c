"""Single faults for the PTX that Triton and Gluon compile, and what the emulator says of each."""

import re
from collections.abc import Callable
from dataclasses import dataclass

import torch
from cases import activations
from close_scales import close_blocks
from kernel_forms import BF16, F16, OPS, Outputs, _mm

from nvfp4.backends.triton.gemm.config import DECODE_8X64, TILE_16X64, HopperConfig

Put = str | Callable[[re.Match[str]], str]


@dataclass(frozen=True)
class Subject:
    """A kernel, the last that `run` launches, on a problem that uses its stages repeatedly."""

    name: str
    sm: int
    run: Callable[[str], Outputs]

    def __str__(self) -> str:
        return self.name


def _cp_async(backend: str) -> Outputs:
    return _mm(backend, 9, 80, 1536, BF16, TILE_16X64)


def _hopper(backend: str) -> Outputs:
    return _mm(backend, 9, 144, 1152, BF16, HopperConfig(8, 4, 4))


def _split_k(backend: str) -> Outputs:
    return _mm(backend, 5, 80, 768, BF16, DECODE_8X64._replace(splits=3))


def _tcgen05(backend: str) -> Outputs:
    return _mm(backend, 20, 144, 1280, BF16, None)


def _mma_scaled(backend: str) -> Outputs:
    return _mm(backend, 13, 136, 1280, BF16, None)


def _rows(backend: str) -> Outputs:
    return OPS.quantize_dynamic(activations(2, 4112, F16), "linear", backend=backend)


def _four_over_six(backend: str) -> Outputs:
    x = close_blocks()[:48].view(-1, 64)
    return OPS.quantize(x, torch.ones(1), "linear", "four_over_six", backend)


CP_ASYNC = Subject("cp.async, mma.sync", 80, _cp_async)
HOPPER = Subject("TMA, wgmma", 90, _hopper)
SPLIT_K = Subject("split-K", 90, _split_k)
TCGEN05 = Subject("tcgen05", 100, _tcgen05)
MMA_SCALED = Subject("mma.sync block-scaled", 120, _mma_scaled)
ROWS = Subject("rows", 80, _rows)
FOUR_OVER_SIX = Subject("four over six", 90, _four_over_six)
FOUR_OVER_SIX_PACKED = Subject("four over six, packed", 100, _four_over_six)
SUBJECTS = (
    CP_ASYNC, HOPPER, SPLIT_K, TCGEN05, MMA_SCALED, ROWS, FOUR_OVER_SIX, FOUR_OVER_SIX_PACKED
)  # fmt: skip


@dataclass(frozen=True)
class Edit:
    """One fault: what `find` matches for the at-th time becomes `put`.

    unnoticed: why the emulator says nothing, and the output is right; "" where it does.
    """

    subject: Subject
    name: str
    find: str
    put: Put
    at: int = 0
    unnoticed: str = ""

    def __str__(self) -> str:
        return f"{self.subject}: {self.name}"

    def apply(self, ptx: str) -> str:
        """The PTX with the fault; LookupError if the kernel is not as the edit knows it."""
        found = list(re.finditer(self.find, ptx))
        if not -len(found) <= self.at < len(found):
            raise LookupError(f"{self}: {self.find} is in the PTX {len(found)} times")
        match = found[self.at]
        put = self.put(match) if callable(self.put) else match.expand(self.put)
        if put == match[0]:
            raise LookupError(f"{self}: the edit changes nothing")
        return ptx[: match.start()] + put + ptx[match.end() :]


DROP = ""


def plus(value: int) -> Put:
    """The last group's number, changed by `value`."""

    def put(match: re.Match[str]) -> str:
        start, end = (at - match.start() for at in match.span(match.re.groups))
        number = int(match[0][start:end], 0) + value
        return f"{match[0][:start]}{number}{match[0][end:]}"

    return put


BARRIER = r"\bbar\.sync\s+\d+(?:, \d+)?;"
BARRIER_OF_COUNTER = r"bar\.sync\s+0;\s+\.loc[^\n]*\s+bar\.sync\s+0;(?=[^@]*@%p\d+ atom\.global)"
WAIT_GROUP = r"cp\.async\.wait_group\s+(\d+);"
WAITED = rf"(cp\.async\.wait_group\s+\d+;[^;]*?){BARRIER}"
COMMIT_GROUP = r"cp\.async\.commit_group;"
PROXY = r"fence\.proxy\.async\.shared::cta;"
GRID_WAIT = r"griddepcontrol\.wait\s*;"
INIT = r"mbarrier\.init\.shared::cta\.b64 \[%r\d+\], (\d+);"
EXPECT = r"mbarrier\.arrive\.expect_tx\.shared::cta\.b64 _, \[%r\d+\], (\d+);"
ARRIVE = r"@%p\d+ mbarrier\.arrive\.shared::cta\.b64 _, \[%r\d+\];"
TRY_WAIT = r"(mbarrier\.try_wait\.parity\.shared::cta\.b64 complete, \[%r\d+\]), (%r\d+);"
OTHER_PARITY = r"{ .reg .b32 other; xor.b32 other, \2, 1; \1, other; }"
FRAGMENT = r"(mma\.sync\.\S+\s+\{[^}]*\},\s*\{ ?%r\d+), (%r\d+), (%r\d+), (%r\d+)"
LDMATRIX = (
    r"(ldmatrix\.sync\.aligned\.m8n8\.x[24]\.shared\.b16\s+\{[^}]*\}, \[%r\d+)(?:\+(\d+))?\];"
)
SHIFTED = r"\1+4096];"
SHARED_LOAD = r"(ld\.shared\.v4\.b32\s+\{[^}]*\}, \[%r\d+)\];"

SUM = r"add\.rn\.f32 \t(%r\d+), (%r\d+), (%r\d+);"
TWO_SUMS = rf"{SUM}\s+{SUM}"

EDITS = [
    Edit(CP_ASYNC, "one group fewer is waited for", WAIT_GROUP, plus(1)),
    Edit(CP_ASYNC, "no wait for copies", WAIT_GROUP, DROP),
    Edit(CP_ASYNC, "no barrier after the wait for copies", WAITED, r"\1"),
    Edit(CP_ASYNC, "a group is not committed", COMMIT_GROUP, DROP,
         unnoticed="its copies join the next group, which the same wait is for"),
    Edit(CP_ASYNC, "the loop's group is not committed", COMMIT_GROUP, DROP, -1),
    Edit(CP_ASYNC, "a fragment from 4 KiB further on", SHARED_LOAD, SHIFTED),
    Edit(CP_ASYNC, "two registers of A are exchanged", FRAGMENT, r"\1, \3, \2, \4"),
    Edit(CP_ASYNC, "no barrier before the output's tile is read", BARRIER, DROP, -1),
    Edit(HOPPER, "no proxy fence before a stage is given back", PROXY, DROP,
         unnoticed="ordinary loads end at once; test_compile.py looks for it in the machine code"),
    Edit(HOPPER, "a stage is not given back", ARRIVE, DROP),
    Edit(HOPPER, "the activations' bytes are too many", EXPECT, plus(16)),
    Edit(HOPPER, "the weights' bytes are too few", EXPECT, plus(-16), 1),
    Edit(HOPPER, "one consumer empties a stage", INIT, plus(-1), 4),
    Edit(HOPPER, "two arrivals fill a stage", INIT, plus(1)),
    Edit(HOPPER, "a wait for the other phase", TRY_WAIT, OTHER_PARITY),
    Edit(HOPPER, "a producer waits for the other phase", TRY_WAIT, OTHER_PARITY, -1),
    Edit(HOPPER, "no wgmma.fence", r"wgmma\.fence\.sync\.aligned;", DROP),
    Edit(HOPPER, "no wgmma.commit_group", r"wgmma\.commit_group\.sync\.aligned;", DROP,
         unnoticed="its products join the next group, which the same wait is for"),
    Edit(HOPPER, "no last wgmma.commit_group", r"wgmma\.commit_group\.sync\.aligned;", DROP, -1),
    Edit(HOPPER, "one wgmma group fewer is waited for",
         r"wgmma\.wait_group\.sync\.aligned\s+(\d+);", plus(1)),
    Edit(HOPPER, "weights from 4 KiB further on", LDMATRIX, SHIFTED),
    Edit(HOPPER, "no barrier within the epilogue", BARRIER, DROP, -1),
    Edit(HOPPER, "activations before griddepcontrol.wait", GRID_WAIT, DROP, -1),
    Edit(HOPPER, "a consumer without griddepcontrol.wait", GRID_WAIT, DROP),
    Edit(SPLIT_K, "no barrier before the tile is counted", BARRIER_OF_COUNTER, DROP),
    Edit(SPLIT_K, "a relaxed counter", r"(atom\.global\.gpu)\.acq_rel", r"\1.relaxed"),
    Edit(SPLIT_K, "one group fewer is waited for", WAIT_GROUP, plus(1)),
    Edit(SPLIT_K, "no griddepcontrol.wait", GRID_WAIT, DROP,
         unnoticed="a kernel without griddepcontrol.wait counts as launched without PDL"),
    Edit(TCGEN05, "no wait for what tcgen05.st stores",
         r"tcgen05\.wait::st\.sync\.aligned;", DROP, -1,
         unnoticed="without tcgen05.fence, the barrier counts as order (Options.tcgen05_fences)"),
    Edit(TCGEN05, "no wait for what tcgen05.ld loads",
         r"tcgen05\.wait::ld\.sync\.aligned;", DROP,
         unnoticed="the wait stands behind uses of what is loaded in all of Triton's PTX"),
    Edit(TCGEN05, "no proxy fence before the MMA", PROXY, DROP),
    Edit(TCGEN05, "no tcgen05.commit", r"@%p\d+ tcgen05\.commit[^;]*;", DROP),
    Edit(TCGEN05, "no tcgen05.dealloc", r"@%p\d+ tcgen05\.dealloc[^;]*;", DROP),
    Edit(TCGEN05, "two arrivals end an MMA", INIT, plus(1)),
    Edit(TCGEN05, "a wait for the other phase", TRY_WAIT, OTHER_PARITY),
    Edit(TCGEN05, "one group fewer is waited for", WAIT_GROUP, plus(1)),
    Edit(TCGEN05, "no wait for copies", WAIT_GROUP, DROP),
    Edit(TCGEN05, "half of the columns", r"(tcgen05\.alloc[^;]*), (\d+);", r"\1, 32;"),
    Edit(MMA_SCALED, "one group fewer is waited for", WAIT_GROUP, plus(1)),
    Edit(MMA_SCALED, "no barrier after the wait for copies", WAITED, r"\1"),
    Edit(MMA_SCALED, "a fragment from 4 KiB further on", LDMATRIX, SHIFTED),
    Edit(MMA_SCALED, "two registers of A are exchanged", FRAGMENT, r"\1, \3, \2, \4"),
    Edit(ROWS, "no barrier before the warps' results are read", BARRIER, DROP),
    Edit(ROWS, "a butterfly's distance is doubled", r"(shfl\.sync\.bfly\.b32\s+[^;]*), 1, 31",
         r"\1, 2, 31"),
    Edit(ROWS, "the last butterfly's distance is doubled",
         r"(shfl\.sync\.bfly\.b32\s+[^;]*), 1, 31", r"\1, 2, 31", -1),
    Edit(ROWS, "a butterfly leaves a lane out", r"(shfl\.sync\.bfly[^;]*), -1;",
         r"\1, 0x7fffffff;"),
    Edit(FOUR_OVER_SIX, "a tie takes four", r"setp\.lt(\.f32 \t%p\d+, %r\d+, %r\d+;)",
         r"setp.le\1"),
    Edit(FOUR_OVER_SIX, "the worse scale", r"setp\.lt(\.f32 \t%p\d+, %r\d+, %r\d+;)",
         r"setp.gt\1"),
    Edit(FOUR_OVER_SIX, "squares of other pairs are added first", TWO_SUMS,
         r"add.rn.f32 \t\1, \2, \6;\nadd.rn.f32 \t\4, \5, \3;"),
    Edit(FOUR_OVER_SIX_PACKED, "a tie takes four", r"setp\.lt(\.f32 \t%p\d+, %r\d+, %r\d+;)",
         r"setp.le\1"),
]  # fmt: skip
"""The faults. Those with a reason in `unnoticed` pass, and give the right output."""
