"""The launches of a form: executed in the emulator, or only planned."""

from unittest import mock

from kernel_forms import Form, Outputs

import nvfp4
from nvfp4.backends.recording import recorded
from nvfp4.backends.triton.runtime import emulated
from nvfp4.backends.triton.runtime.launch import Launch


def ran(form: Form, sm: int) -> tuple[list[Launch], Outputs]:
    """Run a form's kernels for an architecture; return its launches and outputs."""
    with nvfp4.emulate(sm=sm), recorded() as recording:
        outputs = form.run("triton")
    return recording.launches, outputs


def planned(form: Form, sm: int) -> list[Launch]:
    """Give the launches that a form would run."""
    with mock.patch.object(emulated, "run"):
        return ran(form, sm)[0]
