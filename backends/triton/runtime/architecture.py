"""What an NVIDIA architecture offers to kernels, with the installed Triton."""

import functools
import os
from importlib.metadata import PackageNotFoundError, version

FP8 = 89
"""The hardware converts E4M3 to float16 from sm_89 on."""

HOPPER = 90
"""PDL exists from sm_90 on, and Triton converts float32 to E4M3 by one instruction.

On sm_89 Triton 3.6 goes through float16 and rounds twice, though the hardware could round once.
"""

BLACKWELL = 100
"""sm_100 and later (sm_103, sm_110, sm_120, ...) convert float32 to E2M1 and multiply NVFP4."""

Release = tuple[int, ...]

ASSEMBLED_SINCE: dict[int, Release] = {110: (3, 7)}
"""The first Triton whose ptxas knows the architecture, where 3.6 does not.

Triton 3.6 ends with "Value 'sm_110a' is not defined for option 'gpu-name'".
"""

BLOCK_SCALED_SINCE: dict[int, Release] = {121: (3, 8)}
"""The first Triton whose tl.dot_scaled compiles for the architecture, where 3.6 does not.

Triton 3.6 and 3.7 end with "PassManager::run failed" in TritonGPUAccelerateMatmul.
"""

FENCES_COPIES_SINCE: Release = (3, 7)
"""The first Triton that fences cp.async from wgmma and tcgen05.mma, where 3.6 does not.

These read shared memory through the async proxy, and cp.async writes it through the generic one.
PTX asks for fence.proxy.async in between.
"""

OVERWRITES_WGMMA_OPERANDS: Release = (3, 7)
"""The Triton whose pipelined wgmma still reads A's registers when the next step writes them.

PTX asks for wgmma.wait_group before. 3.6 waits for all, and 3.8 and 3.9 write other registers.
"""


def installed(package: str) -> str:
    """The installed package's version; "" if it is not installed."""
    try:
        return version(package)
    except PackageNotFoundError:
        return ""


def release(package: str) -> Release:
    """The installed package's (major, minor); () if it is not installed."""
    return tuple(int(part) for part in installed(package).split(".")[:2] if part)


def interpreting() -> bool:
    """Whether Triton's kernels cannot be compiled in this process (TRITON_INTERPRET).

    They are interpreted on a CPU, or compiled by another process and emulated. Triton reads the
    variable once, at import.
    """
    return os.environ.get("TRITON_INTERPRET", "").lower() in ("1", "true", "yes", "on", "y")


def supports_pdl(sm: int) -> bool:
    """Whether the architecture has programmatic dependent launch."""
    return sm >= HOPPER


def is_blackwell(sm: int) -> bool:
    """Whether the architecture has NVFP4 instructions."""
    return sm >= BLACKWELL


def fences_copies() -> bool:
    """Whether Triton fences what it copies for wgmma and tcgen05.mma (FENCES_COPIES_SINCE)."""
    return release("triton") >= FENCES_COPIES_SINCE


def pipelines_wgmma() -> bool:
    """Whether a loop of Triton's with wgmma may be pipelined (OVERWRITES_WGMMA_OPERANDS)."""
    return release("triton") != OVERWRITES_WGMMA_OPERANDS


@functools.cache
def gemm_architecture(sm: int) -> int:
    """The architecture whose GEMM kernels sm_<sm> runs.

    It is `sm` itself, except on a Blackwell GPU whose block-scaled instruction the installed Triton
    cannot compile. That GPU decodes its operands as sm_89 does.
    """
    return FP8 if release("triton") < BLOCK_SCALED_SINCE.get(sm, ()) else sm


def multiplies_nvfp4(sm: int) -> bool:
    """Whether the GEMMs multiply packed operands by the hardware's block-scaled instruction."""
    return is_blackwell(gemm_architecture(sm))
