"""Programmatic dependent launch (PDL): a kernel may start before the one before it has ended."""

import triton
import triton.language as tl

from nvfp4.backends.triton.runtime import architecture

HOPPER = tl.constexpr(architecture.HOPPER)


@triton.jit
def wait_for_previous_kernel(SM: tl.constexpr):
    """Wait for the end of the kernel before, then let the kernel after this one start.

    Call it before the first read of what the kernel before wrote, and before any write. The next
    kernel must not start sooner: it may read weights before it waits (hopper's copy_weights), which
    the kernel before this one may have written.
    """
    if SM >= HOPPER:
        tl.extra.cuda.gdc_wait()
        tl.extra.cuda.gdc_launch_dependents()
