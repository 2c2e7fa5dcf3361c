"""Machine code made of a kernel's PTX by ptxas, as Triton calls it."""

import re

from triton.backends.compiler import GPUTarget
from triton.compiler import make_backend

from nvfp4.backends.triton.runtime.ptx import Ptx


def assemble(ptx: Ptx, sm: int) -> bytes:
    """Assemble PTX for an architecture; what Triton says of ptxas's errors is raised."""
    backend = make_backend(GPUTarget("cuda", sm, 32))
    options = backend.parse_options({"enable_fp_fusion": False})
    metadata = {"name": ptx.kernel, "shared": ptx.shared}
    return backend.make_cubin(ptx.text, metadata, options, sm)


def given_back(sass: str) -> tuple[int, int]:
    """Count how often a stage of Hopper's pipeline is given back, and how often too early.

    Who reads a stage to registers gives it back. It is too early while the data may still be on its
    way: a copy ahead would overwrite it. A barrier for threads does not wait for that, and arriving
    at one for copies does not either.
    """
    stages, early, reading = 0, 0, False
    for name in re.findall(r"(LDSM|FENCE\.VIEW\.ASYNC|HGMMA|SYNCS\.ARRIVE)", sass):
        if name == "SYNCS.ARRIVE":
            early += reading
        else:
            stages += name == "LDSM" and not reading
            reading = name == "LDSM"
    return stages, early
