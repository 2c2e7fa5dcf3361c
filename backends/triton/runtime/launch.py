"""A kernel launch as a value: what to run, on what grid, with which arguments and options.

Launchers build one and run it; the same value, built from meta tensors, is compiled for any
architecture on a machine without a GPU (ahead.py). So what is checked is what is launched.

Kernels are not specialized to what changes with the number of tokens (do_not_specialize): one that
is compiled serves any number that has its configuration, and warming up is not a matter of luck.
"""

import functools
from collections.abc import Callable
from importlib import import_module
from pkgutil import walk_packages
from typing import Any, NamedTuple

import torch
from torch import Tensor
from triton.compiler import CompiledKernel
from triton.experimental.gluon.nvidia.hopper import TensorDescriptor
from triton.runtime import JITFunction

from nvfp4.backends.triton.runtime import cache_folder


class Launch(NamedTuple):
    kernel: JITFunction
    grid: tuple[int, ...]
    args: tuple[Any, ...]
    constants: dict[str, Any]
    num_warps: int = 4
    num_stages: int = 3
    most_registers: int | None = None
    """A thread. None: as many as it takes."""
    overlaps: bool = False
    """May start before the kernel before has ended, and waits itself (gemm.await_previous)."""

    @property
    def options(self) -> dict[str, Any]:
        # The spec rounds after every operation; a fused multiply-add would not.
        return {
            "num_warps": self.num_warps,
            "num_stages": self.num_stages,
            "maxnreg": self.most_registers,
            "enable_fp_fusion": False,
            "launch_pdl": self.overlaps,
        }

    @property
    def device(self) -> torch.device:
        return next(arg.device for arg in self.args if isinstance(arg, Tensor))

    def run(self) -> None:
        device = self.device
        if device.type != "cuda":
            self._through_triton()  # interpreted
        elif device.index == torch.cuda.current_device():
            self._run_on(device.index)
        else:
            with torch.cuda.device(device):
                self._run_on(device.index)

    def _run_on(self, device: int) -> None:
        key = self._key(device)
        if key in _LOADED:
            launch, arguments = self.loaded()
            launch(*arguments)
        else:
            _LOADED[key] = self._load()

    def _key(self, device: int) -> tuple[Any, ...]:
        kinds = map(kind, self.args, specialized(self.kernel))
        options = self.num_warps, self.num_stages, self.most_registers, self.overlaps
        return (self.kernel.fn, device, *options, *self.constants.values(), *kinds)

    def loaded(self) -> tuple[Callable[..., None], tuple[Any, ...]]:
        """Of a launch that has run: the compiled kernel on its grid, and all that it is called
        with. Triton's own way to it costs more of the host's time than the launch.
        """
        loaded = _LOADED[self._key(self.device.index)]
        x, y, z = (*self.grid, 1, 1)[:3]
        return loaded.kernel[x, y, z], (*self.args, *loaded.constants)

    def _load(self) -> "Loaded":
        cache_folder.ensure_usable()
        hash_all()
        if torch.cuda.is_current_stream_capturing():
            raise RuntimeError(
                f"nvfp4: {self.kernel.fn.__name__} would be compiled while a CUDA graph is "
                "captured; call nvfp4.warmup(...) with this shape, or the layer's warmup(...), "
                "before capturing"
            )
        names = self.kernel.arg_names[len(self.args) :]
        return Loaded(self._through_triton(), tuple(self.constants[name] for name in names))

    def _through_triton(self) -> CompiledKernel:
        return self.kernel[self.grid](*self.args, **self.constants, **self.options)


class Loaded(NamedTuple):
    """A kernel on a device, and its constants in the order of its signature."""

    kernel: CompiledKernel
    constants: tuple[Any, ...]


_LOADED: dict[tuple[Any, ...], Loaded] = {}
"""By all that a kernel is compiled for: what Triton's own cache goes by, told faster."""


@functools.cache
def hash_all() -> None:
    """Triton finds a kernel in its cache on disk by a hash of the source and the constants of all
    functions it calls; but of one that was not hashed before in this process the constants do not
    count. All being hashed first, in one order, a process finds what another has compiled.
    """
    package = import_module("nvfp4.backends.triton")
    modules = walk_packages(package.__path__, f"{package.__name__}.")
    for module in sorted(module.name for module in modules):
        for _, value in sorted(vars(import_module(module)).items()):
            if isinstance(value, JITFunction):
                value.cache_key  # noqa: B018 - hashes it


@functools.cache
def specialized(kernel: JITFunction) -> tuple[bool, ...]:
    """Which of a kernel's arguments it is specialized to."""
    return tuple(not parameter.do_not_specialize for parameter in kernel.params)


def kind(value: Any, specialized: bool) -> Any:
    """What Triton specializes a kernel to: a pointer's dtype and alignment; whether an integer is
    1, a multiple of 16, or wide.
    """
    if isinstance(value, Tensor):
        return value.dtype, value.data_ptr() % 16 == 0
    if isinstance(value, TensorDescriptor):
        return value.base.dtype, *value.block_shape
    if isinstance(value, int):
        if specialized:
            return 1 if value == 1 else (value % 16 == 0, value < 2**31)
        return value < 2**31
    return type(value)


def cdiv(a: int, b: int) -> int:
    return (a + b - 1) // b


def next_power_of_2(n: int) -> int:
    return 1 << max(n - 1, 0).bit_length()
