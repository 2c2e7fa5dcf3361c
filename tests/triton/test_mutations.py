"""Whether the emulator would notice: single faults put into Triton's and Gluon's PTX.

The kernels without faults pass under several schedules. The faults are in triton_edits.py, with a
reason beside each that goes unnoticed.
"""

from dataclasses import replace
from functools import cache
from typing import NamedTuple
from unittest import mock

import pytest
import torch
from kernel_forms import Form, Outputs, everywhere, one_nan
from launches import ran
from torch import Tensor
from triton_edits import EDITS, SUBJECTS, Edit, Subject

from nvfp4.backends.triton.runtime import emulated
from nvfp4.backends.triton.runtime.launch import Launch
from nvfp4.backends.triton.runtime.ptx import Ptx, compiled
from nvfp4.emulator import Deadlock, Hazard

pytestmark = [pytest.mark.emulated, pytest.mark.compiles]


class Schedule(NamedTuple):
    """Options of the emulator: the seed, and the longest time that asynchronous work takes."""

    seed: int
    delay: int


MOST_STEPS = 400_000
"""Several times what any kernel without a fault takes: a spin that never ends is noticed then."""
SCHEDULES = [Schedule(seed, delay) for seed, delay in enumerate((0, 30, 300))]


class Prepared(NamedTuple):
    """A subject's launches on their tensors, and the outputs: its own and the right ones."""

    launches: list[Launch]
    got: Outputs
    want: Outputs


@cache
def prepared(subject: Subject) -> Prepared:
    def seeded(backend: str) -> Outputs:
        torch.manual_seed(0)
        out = subject.run(backend)
        return out if isinstance(out, tuple) else (out,)

    with mock.patch.object(emulated, "run"):
        launches, got = ran(Form(subject.name, seeded, everywhere), subject.sm)
    return Prepared(launches, got, seeded("reference"))


def outcome(subject: Subject, ptx: Ptx, schedule: Schedule) -> str:
    """What the emulator says of a subject's PTX; "" if nothing, and the output is right."""
    launches, got, want = prepared(subject)
    for out in got:
        out.view(torch.uint8).fill_(0x5A)
    for x in _partial_sums(launches[-1]):
        x.fill_(torch.nan)  # an earlier run's are right, and would hide that none were stored
    # Counters that the kernel before zeroes.
    emulated.run(launches[:-1], subject.sm)
    *before, last = launches
    options = replace(emulated.options_of(last, before), **schedule._asdict(), max_steps=MOST_STEPS)
    with mock.patch.object(emulated, "compiled", return_value=ptx):
        try:
            emulated.run_one(last, subject.sm, options)
        except Hazard as hazard:
            return hazard.kind.value
        except Deadlock:
            return "deadlock"
    right = all(
        torch.equal(one_nan(a).view(torch.uint8), one_nan(b).view(torch.uint8))
        for a, b in zip(got, want, strict=True)
    )
    return "" if right else "wrong output"


def _partial_sums(launch: Launch) -> list[Tensor]:
    named = zip(launch.kernel.arg_names, launch.args, strict=False)
    return [x for name, x in named if name == "partial_sums" and x is not None]


def unedited(subject: Subject) -> Ptx:
    return compiled(prepared(subject).launches[-1], subject.sm)


def edited(edit: Edit) -> Ptx:
    ptx = unedited(edit.subject)
    return ptx._replace(text=edit.apply(ptx.text))


@pytest.mark.parametrize("subject", SUBJECTS, ids=str)
def test_the_kernel_is_clean_under_every_schedule(subject):
    for schedule in SCHEDULES:
        assert outcome(subject, unedited(subject), schedule) == ""


@pytest.mark.parametrize("edit", [e for e in EDITS if not e.unnoticed], ids=str)
def test_the_fault_is_noticed(edit):
    ptx = edited(edit)
    assert any(outcome(edit.subject, ptx, schedule) for schedule in reversed(SCHEDULES))


@pytest.mark.parametrize("edit", [e for e in EDITS if e.unnoticed], ids=str)
def test_what_is_listed_as_unnoticed_is(edit):
    """A fault that the emulator has learnt to notice loses its reason."""
    for schedule in SCHEDULES:
        assert outcome(edit.subject, edited(edit), schedule) == ""


def test_the_faults_have_names_of_their_own():
    assert len({str(edit) for edit in EDITS}) == len(EDITS)
    assert sum(not edit.unnoticed for edit in EDITS) >= 25
