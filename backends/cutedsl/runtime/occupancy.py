"""How many clusters of a kernel a GPU runs at once: the CUDA driver knows.

A cluster runs within one GPC, and GPCs differ in their number of SMs. So a GPU may hold fewer
clusters than its SMs divided by a cluster's CTAs.
"""

import ctypes
import functools
import re
from typing import Any

import torch

from nvfp4.backends.cutedsl.gemm.config import Kernel
from nvfp4.backends.cutedsl.gemm.layouts import layout_of
from nvfp4.backends.cutedsl.runtime.compile import Compiled, compiled
from nvfp4.backends.target import target_of

DRIVER = "libcuda.so.1"
CLUSTER_DIMENSION = 4
"""The driver's CU_LAUNCH_ATTRIBUTE_CLUSTER_DIMENSION."""
MAX_DYNAMIC_SHARED = 8
"""The driver's CU_FUNC_ATTRIBUTE_MAX_DYNAMIC_SHARED_SIZE_BYTES."""


class Attribute(ctypes.Structure):
    """The layout of CUlaunchAttribute."""

    _fields_ = (("id", ctypes.c_int32), ("_", ctypes.c_int32), ("value", ctypes.c_uint32 * 16))


class Config(ctypes.Structure):
    """The layout of CUlaunchConfig."""

    _fields_ = (
        ("grid", ctypes.c_uint32 * 3),
        ("block", ctypes.c_uint32 * 3),
        ("dynamic_shared", ctypes.c_uint32),
        ("stream", ctypes.c_void_p),
        ("attributes", ctypes.POINTER(Attribute)),
        ("attribute_count", ctypes.c_uint32),
    )


def clusters_on(kernel: Kernel, device: torch.device, sms: int) -> int:
    """Return how many of the kernel's clusters a device with `sms` SMs runs at once.

    Where the driver cannot be asked, each SM is taken to be reachable. The first question about a
    kernel loads it, which no capture of a CUDA graph allows.
    """
    most = max(1, sms // kernel.tile.cluster)
    if kernel.tile.cluster == 1 or device.type != "cuda":
        return most
    known = None if torch.cuda.is_current_stream_capturing() else asked(kernel, device)
    return min(most, known or most)


@functools.cache
def asked(kernel: Kernel, device: torch.device) -> int | None:
    """What the driver answers; None if there is no driver, or it refuses."""
    driver = load_driver()
    if driver is None:
        return None
    code = compiled(kernel, f"sm_{target_of(device).sm}a")
    with torch.cuda.device(device):
        torch.cuda.current_stream()  # the device's context is the current one from here on
        module, function = ctypes.c_void_p(), ctypes.c_void_p()
        if driver.cuModuleLoadData(ctypes.byref(module), code.cubin):
            return None
        try:
            name = entry_of(code).encode()
            if driver.cuModuleGetFunction(ctypes.byref(function), module, name):
                return None
            return _max_active_clusters(driver, function, kernel, threads_of(code))
        finally:
            driver.cuModuleUnload(module)


def _max_active_clusters(driver: Any, function: Any, kernel: Kernel, threads: int) -> int | None:
    shared, cluster = layout_of(kernel).shared_bytes, kernel.tile.cluster
    if driver.cuFuncSetAttribute(function, MAX_DYNAMIC_SHARED, shared):
        return None
    attribute = Attribute(CLUSTER_DIMENSION, 0, (cluster, 1, 1))
    config = Config((cluster, 1, 1), (threads, 1, 1), shared, None, ctypes.pointer(attribute), 1)
    count = ctypes.c_int()
    asking = ctypes.byref(count), function, ctypes.byref(config)
    return None if driver.cuOccupancyMaxActiveClusters(*asking) else count.value


def entry_of(code: Compiled) -> str:
    """The kernel's name."""
    (name,) = re.findall(r"\.entry\s+(\w+)", code.ptx)
    return name


def threads_of(code: Compiled) -> int:
    """The threads of a CTA."""
    (threads,) = re.findall(r"\.reqntid\s+(\d+)", code.ptx)
    return int(threads)


@functools.cache
def load_driver() -> Any:
    """The CUDA driver's library; None where there is none, or one older than clusters."""
    try:
        driver = ctypes.CDLL(DRIVER)
        driver.cuOccupancyMaxActiveClusters  # noqa: B018 - asks whether it is there
    except (OSError, AttributeError):
        return None
    return driver
