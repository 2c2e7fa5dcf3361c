"""A kernel launch as a value: the kernel, its grid, its arguments and its compile options.

Launchers build a Launch and run it. Built from meta tensors, it is compiled for any architecture on
a machine without a GPU (ahead.py), so tests check the launch that runs.

Kernels are not specialized to arguments that change with the number of tokens (do_not_specialize).
A compiled kernel then serves every number of tokens that has its configuration.
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
from nvfp4.backends.triton.runtime.compat import interpreting
from nvfp4.backends.triton.runtime.descriptors import pointer


class Launch(NamedTuple):
    """One kernel launch; `constants` are its constexpr arguments."""

    kernel: JITFunction
    grid: tuple[int, ...]
    args: tuple[Any, ...]
    constants: dict[str, Any]
    num_warps: int = 4
    num_stages: int = 3
    maxnreg: int | None = None
    """The most registers a thread; None: no cap."""
    launch_pdl: bool = False
    """PDL: the kernel may start before the one before ends, and waits itself (device/pdl.py)."""

    @property
    def options(self) -> dict[str, Any]:
        """The compile options, by Triton's names."""
        # The spec rounds after every operation, so multiply-adds are not fused.
        return {
            "num_warps": self.num_warps,
            "num_stages": self.num_stages,
            "maxnreg": self.maxnreg,
            "enable_fp_fusion": False,
            "launch_pdl": self.launch_pdl,
        }

    @property
    def device(self) -> torch.device:
        return next(arg.device for arg in self.args if isinstance(arg, Tensor))

    def run(self) -> None:
        """Launch on the tensors' device; interpret where they are not on a GPU."""
        device = self.device
        if device.type != "cuda":
            with interpreting():
                self._through_triton()
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
        options = self.num_warps, self.num_stages, self.maxnreg, self.launch_pdl
        return (self.kernel.fn, device, *options, *self.constants.values(), *kinds)

    def loaded(self) -> tuple[Callable[..., None], tuple[Any, ...]]:
        """The compiled kernel on its grid and the arguments to call it with; it must have run once.

        Triton's own path to them costs more host time than the launch.
        """
        loaded = _LOADED[self._key(self.device.index)]
        x, y, z = (*self.grid, 1, 1)[:3]
        return loaded.kernel[x, y, z], (*self.args, *loaded.constants)

    def bound(self) -> tuple[Callable[..., None], tuple[Any, ...]]:
        """What to launch, and its arguments in the form that a recording takes."""
        launch, arguments = self.loaded()
        return launch, tuple(
            pointer(x) if isinstance(x, TensorDescriptor) else x for x in arguments
        )

    def describe(self) -> str:
        """The kernel's name, with its constants and options."""
        kernel = self.kernel.fn.__name__.removeprefix("_").removesuffix("_kernel")
        options = {
            "num_warps": self.num_warps,
            "num_stages": self.num_stages,
            "maxnreg": self.maxnreg,
        }
        told = [
            name if value is True else f"{name}={value}"
            for name, value in (self.constants | options).items()
            if value not in (False, None, "")
        ]
        return f"{kernel}({', '.join(told)})"

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
    """A compiled kernel on a device, and its constants in the order of its signature."""

    kernel: CompiledKernel
    constants: tuple[Any, ...]


_LOADED: dict[tuple[Any, ...], Loaded] = {}
"""Kernels that have run here, by what Triton's own cache distinguishes, looked up faster."""


@functools.cache
def hash_all() -> None:
    """Hash every kernel and device function of this backend, in one order.

    Triton finds a kernel on disk by a hash of the source and constants of all functions that it
    calls. It leaves out the constants of a function that was not hashed before in this process.
    Hashing all of them first lets a process find what another process has compiled.
    """
    package = import_module("nvfp4.backends.triton")
    modules = walk_packages(package.__path__, f"{package.__name__}.")
    for module in sorted(module.name for module in modules):
        for _, value in sorted(vars(import_module(module)).items()):
            if isinstance(value, JITFunction):
                value.cache_key  # noqa: B018 - hashes it


@functools.cache
def specialized(kernel: JITFunction) -> tuple[bool, ...]:
    """Whether a kernel is specialized to each of its arguments."""
    return tuple(not parameter.do_not_specialize for parameter in kernel.params)


def kind(value: Any, specialized: bool) -> Any:
    """What Triton specializes a kernel to: a pointer's dtype and alignment, an integer's width.

    If `specialized`, also whether an integer is 1 or a multiple of 16.
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
    """Divide and round up."""
    return (a + b - 1) // b


def next_power_of_2(n: int) -> int:
    """The smallest power of two that is at least n."""
    return 1 << max(n - 1, 0).bit_length()
