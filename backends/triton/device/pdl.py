"""Programmatic dependent launch (PDL): a kernel starts before the one before it has ended."""

import triton
import triton.language as tl

from nvfp4.backends.triton.runtime import architecture

HOPPER = tl.constexpr(architecture.HOPPER)


@triton.jit
def await_previous(SM: tl.constexpr):
    """Before the first read of what the kernel before wrote, and before any write: wait for its
    end. Then the kernel after this one may start, and wait in turn. Not sooner: it may read weights
    before it waits (hopper.copy_weights), and these the kernel before this one may have written.
    """
    if SM >= HOPPER:
        tl.extra.cuda.gdc_wait()
        tl.extra.cuda.gdc_launch_dependents()
