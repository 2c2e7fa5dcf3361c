"""A kernel launch as a value: what to run, on what grid, with which arguments and options.

Launchers build one and run it; the same value, built from meta tensors, is compiled for any
architecture on a machine without a GPU (ahead.py). So what is checked is what is launched.

Kernels are not specialized to what changes with the number of tokens (do_not_specialize): one that
is compiled serves any number that has its configuration, and warming up is not a matter of luck.
"""

from contextlib import nullcontext
from typing import Any, NamedTuple

import torch
from triton import knobs
from triton.runtime import JITFunction


class Launch(NamedTuple):
    kernel: JITFunction
    grid: tuple[int, ...]
    args: tuple[Any, ...]
    constants: dict[str, Any]
    num_warps: int = 4
    num_stages: int = 3

    @property
    def options(self) -> dict[str, Any]:
        # The spec rounds after every operation; a fused multiply-add would not.
        return {
            "num_warps": self.num_warps,
            "num_stages": self.num_stages,
            "enable_fp_fusion": False,
        }

    def run(self) -> None:
        device = self.args[0].device
        elsewhere = device.type == "cuda" and device.index != torch.cuda.current_device()
        with torch.cuda.device(device) if elsewhere else nullcontext():
            if device.type == "cuda" and torch.cuda.is_current_stream_capturing():
                self._run_captured()
            else:
                self._run()

    def _run(self) -> Any:
        return self.kernel[self.grid](*self.args, **self.constants, **self.options)

    def _run_captured(self) -> None:
        """A kernel that is not loaded yet cannot be while a CUDA graph is captured."""
        with knobs.runtime.scope():
            knobs.runtime.jit_cache_hook = _refuse
            if self._run() is None:
                raise RuntimeError(
                    f"nvfp4: {self.kernel.fn.__name__} would be compiled while a CUDA graph is "
                    "captured; call nvfp4.warmup(...) with this shape, or the layer's warmup(...), "
                    "before capturing"
                )


def _refuse(**about: Any) -> bool:
    """Asked by Triton before it compiles; another thread, not capturing, may do so meanwhile."""
    return torch.cuda.is_current_stream_capturing()


def cdiv(a: int, b: int) -> int:
    return (a + b - 1) // b


def next_power_of_2(n: int) -> int:
    return 1 << max(n - 1, 0).bit_length()
