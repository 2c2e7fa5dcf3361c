"""Every form of every Triton and Gluon kernel, executed for every architecture in the emulator.

The PTX that Triton compiles runs on CPU tensors, and must give the reference's bits.
With another release of Triton first in PYTHONPATH, this file checks that one.
"""

import functools
import re
from collections.abc import Iterable

import pytest
import torch
from cases import same_bits
from instructions import check_instructions, names
from kernel_forms import SMALL, Form, Outputs, forms_on, one_nan
from launches import planned, ran
from paths import ROOT

from nvfp4.backends import triton
from nvfp4.backends.problem import Problem
from nvfp4.backends.target import Target
from nvfp4.backends.triton.runtime.ptx import Ptx, compiled

pytestmark = [pytest.mark.emulated, pytest.mark.compiles]

ARCHITECTURES = (80, 89, 90, 100, 120)
"""Architectures whose PTX differs."""

IN_EVERY_FORM = (80, 100)
"""Architectures that run all forms: without hardware conversions of 8 and 4 bits, and with both."""

TWINS = {86: 80, 103: 100, 110: 100, 121: 120}
"""Architectures that compile to another's PTX."""


def multiplies(form: Form) -> bool:
    return form.name.startswith(("mm", "grouped_mm", "linear", "moe W4A16"))


def chosen(sm: int) -> list[Form]:
    """Every GEMM, and the other kernels in a form each where not in every form.

    Other dtypes and scales of these run the same instructions. So do the GEMMs of sm_89, which
    multiplies as sm_80 does and converts as sm_90 does.
    """
    return [
        form
        for form in forms_on(sm)
        if sm in IN_EVERY_FORM or form.name in SMALL or (multiplies(form) and sm != 89)
    ]


def chosen_of_a_twin(sm: int) -> list[Form]:
    """Each GEMM, and a quantizer: the other kernels have no instruction besides theirs."""
    small = [form for form in forms_on(sm) if form.name in SMALL]
    return [form for form in small if multiplies(form) or form.name.startswith("quantize ")]


@pytest.fixture(autouse=True)
def poisoned(monkeypatch: pytest.MonkeyPatch):
    """Memory that a kernel does not write is NaN or the largest integer."""
    monkeypatch.setattr(torch.utils.deterministic, "fill_uninitialized_memory", True)
    torch.use_deterministic_algorithms(True)
    yield
    torch.use_deterministic_algorithms(False)


@functools.cache
def reference(form: Form) -> Outputs:
    return form.run("reference")


def skip_if_refused(sm: int) -> None:
    if reasons := triton.BACKEND.reasons(Problem("quantize", Target("cpu", sm))):
        pytest.skip("; ".join(reasons))


def execute(form: Form, sm: int) -> list[tuple[str, Ptx]]:
    """Run a form and compare its outputs; return its kernels' names and PTX."""
    launches, got = ran(form, sm)
    for mine, theirs in zip(got, reference(form), strict=True):
        same_bits(one_nan(mine), one_nan(theirs))
    return [(launch.kernel.fn.__name__, compiled(launch, sm)) for launch in launches]


@pytest.mark.parametrize(
    "sm, form",
    [pytest.param(sm, form, id=f"sm_{sm}: {form}") for sm in ARCHITECTURES for form in chosen(sm)],
)
def test_a_form_of_a_kernel_gives_the_references_bits(sm, form):
    skip_if_refused(sm)
    for kernel, ptx in execute(form, sm):
        check_instructions(kernel, ptx.text, sm, decodes="W4A16" in form.name)


@pytest.mark.parametrize(
    "sm, form",
    [
        pytest.param(sm, form, id=f"sm_{sm}: {form}")
        for sm in TWINS
        for form in chosen_of_a_twin(sm)
    ],
)
def test_a_twin_compiles_to_the_same_ptx_or_gives_the_same_bits(sm, form):
    skip_if_refused(sm)
    if not form.on(TWINS[sm]) or ptx_without_target(form, sm) != ptx_without_target(
        form, TWINS[sm]
    ):
        execute(form, sm)


def ptx_without_target(form: Form, sm: int) -> list[Ptx]:
    """What launches need of PTX, without the architecture that it names."""
    made = [compiled(launch, sm) for launch in planned(form, sm)]
    return [
        ptx._replace(
            text="\n".join(line for line in ptx.text.splitlines() if not line.startswith(".target"))
        )
        for ptx in made
    ]


def kernels(forms: Iterable[Form], sm: int) -> set[str]:
    return {launch.kernel.fn.__name__ for form in forms for launch in planned(form, sm)}


def test_every_kernel_has_a_form():
    files = (ROOT / "backends" / "triton").rglob("*.py")
    written = {
        name for file in files for name in re.findall(r"def (_\w+_kernel)\(", file.read_text())
    }
    assert set().union(*(kernels(chosen(sm), sm) for sm in ARCHITECTURES)) == written


@pytest.mark.parametrize("sm", ARCHITECTURES)
def test_every_kernel_of_an_architecture_is_executed(sm):
    skip_if_refused(sm)
    assert kernels(chosen(sm), sm) == kernels(forms_on(sm), sm)


@pytest.mark.parametrize("sm", TWINS)
def test_every_gemm_of_a_twin_is_compiled(sm):
    skip_if_refused(sm)
    gemms = [form for form in forms_on(sm) if multiplies(form)]
    assert kernels(chosen_of_a_twin(sm), sm) >= kernels(gemms, sm)


def test_registers_exchanged_in_a_loop_were_followed_for_ever():
    ptx = "mov.b32 %r1, %r2;\nmov.b32 %r2, %r1;\nfma.rn.f32 %f1, %f2, %r1, %f3;\n"
    assert list(names(ptx)) == ["mov.b32", "mov.b32", "fma.rn.f32"]
