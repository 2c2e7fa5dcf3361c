"""Names of Triton and Gluon that are private, or that differ between releases.

Each was read in the releases named beside it: 3.6.0, 3.7.1, 3.8.0 and 3.9.0.
"""

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import replace
from types import SimpleNamespace
from typing import Any

import triton
from triton import language
from triton.experimental.gluon import language as gl
from triton.experimental.gluon.language.nvidia.hopper import tma
from triton.experimental.gluon.nvidia.hopper import TensorDescriptor
from triton.language import core
from triton.runtime import interpreter

aggregate = triton.aggregate if hasattr(triton, "aggregate") else core._aggregate
"""A class whose fields are values of a kernel. Public since 3.8; core._aggregate in all four."""

barrier = gl.barrier if hasattr(gl, "barrier") else gl.thread_barrier
"""A barrier for a warp group's threads. gl.barrier since 3.7, gl.thread_barrier in 3.6."""

copy_tile = tma.async_load if hasattr(tma, "async_load") else tma.async_copy_global_to_shared
"""A TMA copy to shared memory. async_load since 3.8, async_copy_global_to_shared before."""

_memory = gl.shared_memory_descriptor
reinterpret = _memory.reinterpret if hasattr(_memory, "reinterpret") else _memory._reinterpret
"""Shared memory read as another dtype and shape. Public since 3.9, _reinterpret before."""


@contextmanager
def active_driver(driver: Any) -> Iterator[None]:
    """Make `driver` Triton's driver within the block.

    triton.runtime.driver has set_active but nothing that reads the driver without creating one;
    its _active is in all four releases.
    """
    drivers = triton.runtime.driver
    before = drivers._active
    drivers.set_active(driver)
    try:
        yield
    finally:
        drivers._active = before


@contextmanager
def interpreting() -> Iterator[None]:
    """Interpret the launch within the block without work that changes no result.

    Triton's interpreter replaces the language's functions once a launch, and again at every call of
    a device function. It also looks for overflow in every integer sum, which compiled kernels do in
    debug mode alone. The two are half of its time. The names are in all four releases.
    """
    patch, options = interpreter._patch_lang, interpreter.interpreter_builder.options
    scopes: dict[tuple[bool, ...], Any] = {}

    def patch_once(function: Any) -> Any:
        names = function.__globals__.values()
        seen = tuple(any(value is module for value in names) for module in (language, core))
        if seen not in scopes:
            scopes[seen] = patch(function)
        return SimpleNamespace(restore=lambda: None)

    interpreter._patch_lang = patch_once
    interpreter.interpreter_builder.options = replace(options, sanitize_overflow=False)
    try:
        yield
    finally:
        for scope in reversed(scopes.values()):
            scope.restore()
        interpreter._patch_lang = patch
        interpreter.interpreter_builder.options = options


def copy_descriptor(fields: Mapping[str, Any], base: Any) -> TensorDescriptor:
    """Return a tensor descriptor with these fields over `base`, unchecked.

    TensorDescriptor's constructor would check again what was checked when it was first made. It is
    a dataclass without slots in all four releases.
    """
    descriptor = object.__new__(TensorDescriptor)
    vars(descriptor).update(fields, base=base)
    return descriptor
