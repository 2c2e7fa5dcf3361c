"""`pytest --as-sm 89`: the GPU's tests on the PTX of an older architecture.

torch reports the older capability, so dispatch and the choice of tiles are the older GPU's. Triton
compiles for it, and ptxas alone is told to assemble that PTX for the GPU that is here. What runs is
the older architecture's own PTX: its conversions, its tensor-core instructions, its rounding.
Speed says nothing about that GPU, and its ptxas may still schedule otherwise.
"""

import os
from typing import Any

import pytest

LIMITS = {80: 163, 86: 99, 89: 99}
"""KiB of shared memory that one block may ask for (CUDA C++ programming guide)."""

NEWER = ("wgmma", "mbarrier", "griddepcontrol")
"""Instructions that these architectures do not have, though this GPU would run them."""


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption(
        "--as-sm", type=int, choices=sorted(LIMITS), help="run the PTX of this architecture"
    )


class OlderGpu:
    """The patches of torch and Triton, and the checks of what is compiled under them."""

    def __init__(self, sm: int) -> None:
        self.sm = sm

    def pytest_sessionstart(self) -> None:
        import torch
        import triton
        from triton.backends.compiler import GPUTarget
        from triton.backends.nvidia import compiler

        # Processes that compile ahead are not patched: what they compile is for the older GPU only.
        triton.knobs.cache.dir = f"{triton.knobs.cache.dir}/as_sm_{self.sm}"
        here = f"sm_{''.join(map(str, torch.cuda.get_device_capability()))}a"
        torch.cuda.get_device_capability = lambda *_: divmod(self.sm, 10)
        target = GPUTarget("cuda", self.sm, 32)
        triton.runtime.driver.active.get_current_target = lambda: target
        arch_of, make_cubin = compiler.sm_arch_from_capability, compiler.CUDABackend.make_cubin

        def assembled_for_here(backend: Any, ptx: str, metadata: Any, *args: Any) -> Any:
            name, shared = metadata["name"], metadata.get("shared", 0)
            assert f".target sm_{self.sm}" in ptx, ptx[:300]
            assert not any(instruction in ptx for instruction in NEWER), name
            assert shared <= LIMITS[self.sm] * 1024, (name, shared)
            compiler.sm_arch_from_capability = lambda _: here
            try:
                return make_cubin(backend, ptx, metadata, *args)
            finally:
                compiler.sm_arch_from_capability = arch_of

        compiler.CUDABackend.make_cubin = assembled_for_here


def pytest_configure(config: pytest.Config) -> None:
    sm = config.getoption("--as-sm")
    if sm is not None:
        os.environ["TORCHINDUCTOR_COMPILE_THREADS"] = "1"  # its processes are not patched either
        config.pluginmanager.register(OlderGpu(sm), "older_gpu")
