"""Whether the emulator would notice: single faults put into the PTX of our own kernels, each of
which it must report, while the kernels as they are pass under every schedule.

The faults are in mutations.py; those that go unnoticed, and why, in MUTATIONS.md beside the
emulator.
"""

import re
from dataclasses import dataclass
from functools import cache
from typing import Any, NamedTuple

import pytest
import torch
from cases import Shape, same_bits
from edits import Edit, Outcome
from mutations import EDITS, MULTICAST, ONE, PAIR, SPLIT_K
from paths import ROOT
from torch import Tensor

import nvfp4
from nvfp4.backends.cutedsl.gemm.config import STAGE_K, Tile
from nvfp4.backends.cutedsl.gemm.launch import Launch, plan
from nvfp4.backends.cutedsl.gemm.layouts import layout_of
from nvfp4.backends.cutedsl.runtime.compile import FUNCTION, Compiled, compiled
from nvfp4.backends.reference.mm import mm as reference_mm
from nvfp4.calls import Mm
from nvfp4.emulator import Deadlock, Emulated, Hazard, Kind, Options, load
from nvfp4.emulator.machine.tensor_pipe import ISA_PIPELINES

pytestmark = pytest.mark.usefixtures("emulated")

DOCUMENT = ROOT / "emulator" / "MUTATIONS.md"


@dataclass(frozen=True)
class Subject:
    """A kernel and a problem for it: ragged, with more stages than fit in shared memory and more
    tiles than there are clusters, so that every barrier goes through several phases. With split-K a
    cluster has one tile. `seeds`: with how many the kernel as it is must be clean, at each delay.
    """

    tile: Tile
    shape: Shape
    bias: bool
    sms: int
    seeds: int


KERNELS = {
    ONE: Subject(Tile(128, 128), Shape(136, 136, 1296), True, 1, 5),
    PAIR: Subject(Tile(256, 256, 2, 1), Shape(264, 264, 1296), False, 2, 5),
    MULTICAST: Subject(Tile(256, 128, 4, 2), Shape(520, 136, 1808), False, 8, 3),
    SPLIT_K: Subject(Tile(128, 16, split_k=2, swapped=True), Shape(9, 264, 4880), False, 2, 5),
}


class Schedule(NamedTuple):
    """Options of the emulator: the seed, the longest time that asynchronous work takes, how long a
    warp runs at a time.
    """

    seed: int
    delay: int
    quantum: int = 64


DELAYS = (0, 30, 300, 1000)
SCHEDULES = [Schedule(seed, delay) for seed, delay in enumerate(DELAYS)]
CLEAN_DELAYS = (0, 300)
"""The kernels as they are run under these, with several seeds each."""
EXTREMES = (SCHEDULES[0], SCHEDULES[-1])
"""A fault must be noticed where asynchronous work ends at once, and where it takes longest."""


class Prepared(NamedTuple):
    launch: Launch
    code: Compiled
    want: Tensor


@cache
def prepared(kernel: str) -> Prepared:
    """Operands with scales of 1/2, 1 and 2: every sum is exact in float32, in any order."""
    subject = KERNELS[kernel]
    m, n, k = subject.shape.m, subject.shape.n, subject.shape.k
    generator = torch.Generator().manual_seed(0)

    def operand(rows: int) -> tuple[Tensor, Tensor]:
        data = torch.randint(0, 256, (rows, k // 2), dtype=torch.uint8, generator=generator)
        chosen = torch.randint(0, 3, (rows, k // 16), generator=generator)
        scales = torch.tensor([0.5, 1.0, 2.0])[chosen].to(torch.float8_e4m3fn)
        return data, nvfp4.swizzle_scales(scales)

    (a, a_scales), (b, b_scales) = operand(m), operand(n)
    alpha = torch.full((1, 1), 0.25)
    bias = torch.randn(n, generator=generator) if subject.bias else None
    out, want = torch.empty(2, m, n, dtype=torch.bfloat16)
    call = Mm(a, b, a_scales, b_scales, alpha, None, bias)
    reference_mm(call, want)
    launch = plan(call, out, subject.tile, subject.sms)
    return Prepared(launch, compiled(launch.kernel, "sm_100a"), want)


@cache
def unedited(kernel: str) -> Emulated:
    code = prepared(kernel).code
    return load(code.object_code, FUNCTION, code.ptx)


def run(kernel: str, function: Emulated, schedule: Schedule, **further: Any) -> Tensor:
    launch = prepared(kernel).launch
    out = launch.tensors["out"]
    out.fill_(float("nan"))
    options = Options(
        seed=schedule.seed,
        delay=schedule.delay,
        quantum=schedule.quantum,
        outputs=frozenset({"out"}),
        max_steps=1_000_000,
        **further,
    )
    stream = 0
    function(*launch.args, stream, memory=launch.tensors, options=options)
    return out


def outcome(edit: Edit, function: Emulated, schedule: Schedule) -> Outcome | None:
    """What the emulator says of an edited kernel; None if nothing, and the output is right."""
    try:
        out = run(edit.kernel, function, schedule)
    except Hazard as hazard:
        return hazard.kind
    except Deadlock:
        return "deadlock"
    want = prepared(edit.kernel).want
    return None if torch.equal(out.view(torch.int16), want.view(torch.int16)) else "wrong output"


def edited(edit: Edit) -> Emulated:
    code = prepared(edit.kernel).code
    return load(code.object_code, FUNCTION, edit.apply(code.ptx))


@pytest.mark.parametrize("kernel", KERNELS)
def test_the_problem_reuses_what_the_kernel_reuses(kernel):
    subject, launch = KERNELS[kernel], prepared(kernel).launch
    rows, columns, k = launch.args[8:11]
    tile, layout = subject.tile, layout_of(launch.kernel)
    assert -(-k // STAGE_K) // tile.split_k > layout.stages
    clusters = launch.sizes[-2]
    assert clusters == tile.clusters(rows, columns, subject.sms)
    tiles = tile.tiles(rows, columns) // clusters
    assert tiles == 1 if kernel == SPLIT_K else tiles >= (2 if kernel == MULTICAST else 3)


@pytest.mark.parametrize("delay", CLEAN_DELAYS)
@pytest.mark.parametrize("kernel", KERNELS)
def test_the_kernel_is_clean_under_every_schedule(kernel, delay):
    """With odd seeds its CTAs drift apart further."""
    for seed in range(KERNELS[kernel].seeds):
        out = run(kernel, unedited(kernel), Schedule(seed, delay, 512 if seed % 2 else 64))
        same_bits(out, prepared(kernel).want)


@pytest.mark.parametrize("kernel", KERNELS)
def test_the_order_of_tcgen05_work_that_the_kernel_relies_on(kernel):
    """PTX ISA's pairs, and that an MMA has read its scales before the next stage's are copied over
    them: CUTLASS relies on that too.
    """
    schedule, function = Schedule(0, 30), unedited(kernel)
    relied_on = ISA_PIPELINES | {("mma", "cp")}
    out = run(kernel, function, schedule, tcgen05_pipelines=relied_on)
    same_bits(out, prepared(kernel).want)
    with pytest.raises(Hazard, match="reader: tcgen05.mma|writer: tcgen05.cp") as raised:
        run(kernel, function, schedule, tcgen05_pipelines=ISA_PIPELINES)
    assert raised.value.kind is Kind.OVERWRITE and "tcgen05.cp" in raised.value.text


@pytest.mark.parametrize("edit", [e for e in EDITS if e.caught], ids=str)
def test_the_fault_is_always_noticed(edit):
    function = edited(edit)
    for schedule in EXTREMES:
        got = outcome(edit, function, schedule)
        assert got in edit.caught, f"{schedule}: {edit.why}"


@pytest.mark.parametrize("edit", [e for e in EDITS if not e.caught], ids=str)
def test_what_is_listed_as_unnoticed_is(edit):
    """A fault that the emulator has learnt to notice moves to those that it must."""
    function = edited(edit)
    for schedule in SCHEDULES:
        assert outcome(edit, function, schedule) is None


def test_the_unnoticed_are_documented():
    documented = re.findall(r"^\| `(.+?)` \|", DOCUMENT.read_text(), re.MULTILINE)
    assert sorted(documented) == sorted(str(edit) for edit in EDITS if not edit.caught)


def test_the_faults_have_names_of_their_own():
    names = [str(edit) for edit in EDITS]
    assert len(names) == len(set(names))


@pytest.mark.parametrize("find", ["no such text", r"\n"])
def test_an_edit_that_no_longer_fits_is_an_error(find):
    edit = Edit(ONE, "of a kernel that has changed", find, "", frozenset(), "")
    with pytest.raises(LookupError, match="of a kernel that has changed: .* needs 1"):
        edit.apply(prepared(ONE).code.ptx)
