"""A compiled CuTe DSL function, called on the CPU with its kernel launches emulated.

The function's own host code runs: it computes the grid, encodes the tensor maps and fills in the
parameters. Only the CUDA runtime below it is replaced, by cudart.c.
"""

import ctypes
import threading
from collections.abc import Mapping
from importlib import import_module
from typing import Any

import torch

from nvfp4.emulator.hazards import Unsupported
from nvfp4.emulator.launch.library import library
from nvfp4.emulator.launch.session import Session, parsed, program_of
from nvfp4.emulator.machine.cluster import Dim
from nvfp4.emulator.machine.machine import Launch
from nvfp4.emulator.machine.options import Options, Report

_ENGINES = "cutlass._mlir._mlir_libs._cutlass_ir._execution_engine"
"""The private module with BinaryExecutionEngine, seen in nvidia-cutlass-dsl 4.8.1."""
_CLUSTER_DIMENSION = 4
"""The id of cudaLaunchAttributeClusterDimension."""
_KNOWN_ATTRIBUTES = (0, 2, _CLUSTER_DIMENSION, 6)
"""The ids of: ignore, cooperative, cluster dimension, programmatic stream serialization."""


class _Attribute(ctypes.Structure):
    _fields_ = (("id", ctypes.c_int32), ("_", ctypes.c_int32), ("value", ctypes.c_uint32 * 16))


class _Config(ctypes.Structure):
    """The layout of cudaLaunchConfig_t."""

    _fields_ = (
        ("grid", ctypes.c_uint32 * 3),
        ("block", ctypes.c_uint32 * 3),
        ("dynamic_shared", ctypes.c_uint64),
        ("stream", ctypes.c_void_p),
        ("attributes", ctypes.POINTER(_Attribute)),
        ("attribute_count", ctypes.c_uint32),
    )


_LAUNCH = ctypes.CFUNCTYPE(
    ctypes.c_int, ctypes.POINTER(_Config), ctypes.c_void_p, ctypes.POINTER(ctypes.c_void_p)
)
_KERNEL = ctypes.CFUNCTYPE(ctypes.c_int, ctypes.POINTER(ctypes.c_void_p), ctypes.c_char_p)

_lock = threading.RLock()
"""Only one call is emulated at a time: the C library has one pair of callbacks."""


class _Call:
    """The call that runs now: its launches' PTX and memory, and the error that they raised."""

    def __init__(
        self, text: str, names: list[str], session: "Session", large_clusters: Any
    ) -> None:
        self.text, self.names, self.session = text, names, session
        self.large_clusters = large_clusters
        self.error: BaseException | None = None

    def kernel(self, out: Any, name: bytes) -> int:
        self.names.append(name.decode())
        out[0] = len(self.names)  # a handle: 1, 2, ...
        return 0

    def launch(self, config: Any, handle: int, arguments: Any) -> int:
        # A Python exception cannot cross the host code, which does not survive an error code
        # either. So every launch returns success, and the call raises the error afterwards.
        if self.error is None:
            try:
                self._launch(config.contents, handle, arguments)
            except BaseException as error:
                self.error = error
        return 0

    def _launch(self, config: _Config, handle: int, arguments: Any) -> None:
        cluster: Dim = (1, 1, 1)
        for attribute in config.attributes[: config.attribute_count]:
            if attribute.id not in _KNOWN_ATTRIBUTES:
                raise Unsupported(f"launch attribute {attribute.id}")
            if attribute.id == _CLUSTER_DIMENSION:
                x, y, z = attribute.value[:3]
                cluster = (x, y, z)
        program = program_of(self.text, self.names[handle - 1])
        kernel = program.kernel
        parameters = bytearray()
        for i, parameter in enumerate(kernel.parameters):
            parameters += bytes(kernel.parameter_offsets[parameter.name] - len(parameters))
            parameters += ctypes.string_at(arguments[i], parameter.size)
        x, y, z = config.grid
        bx, by, bz = config.block
        grid, block = (x, y, z), (bx, by, bz)
        self.session.run(
            Launch(
                program,
                grid,
                block,
                cluster,
                config.dynamic_shared,
                bytes(parameters),
                bool(self.large_clusters(ctypes.c_size_t(handle))),
            )
        )


_RUNTIME = (
    "_cuKernelGetAttribute",
    "_cudaDeviceGetAttribute",
    "_cudaFuncSetAttribute",
    "_cudaGetDevice",
    "_cudaGetDeviceCount",
    "_cudaKernelSetAttributeForDevice",
    "_cudaLaunchKernelEx",
    "_cudaLibraryGetKernel",
    "_cudaLibraryLoadData",
    "_cudaLibraryUnload",
    "cuda_dialect_init_library_once",
    "cuda_dialect_unload_library_once",
    "CuteDSLRT_TVMFFISetRaisedCudaError",
)
"""Symbols of the CUDA runtime and of the DSL's runtime that an exported object needs."""


def _rebound(obj: bytes) -> bytes:
    """Rename the runtime's symbols in an object to those of cudart.c: "cu" becomes "em".

    A process that has imported the DSL has the real symbols loaded, and would find them first.
    """
    for name in _RUNTIME:
        ours = name.replace("cu", "em", 1) if "cu" in name else name.replace("Cu", "Em", 1)
        obj = obj.replace(f"{name}\0".encode(), f"{ours}\0".encode())
    return obj


class Emulated:
    """A compiled function whose kernels run on the CPU when it is called."""

    def __init__(self, obj: bytes, name: str, ptx: str) -> None:
        # Both cost seconds to import, and neither has types.
        tvm_ffi = import_module("tvm_ffi")
        engines = import_module(_ENGINES)
        runtime = library()
        stand_in = ctypes.CDLL(runtime, mode=ctypes.RTLD_GLOBAL)
        self._set = stand_in.emulator_set
        self._large_clusters = stand_in.emulator_large_clusters
        self._text = ptx
        parsed(ptx)  # raises UnsupportedInstruction here, not in the first call
        self._names: list[str] = []
        libraries = [runtime, tvm_ffi.libinfo.find_libtvm_ffi()]
        engine = engines.BinaryExecutionEngine(_rebound(obj), libraries, True)
        address = engine.lookup(f"__tvm_ffi_{name}")
        self._function = tvm_ffi.Function.__from_extern_c__(address, keep_alive_object=engine)

    def __call__(
        self,
        *args: Any,
        memory: Mapping[str, torch.Tensor],
        options: Options | None = None,
    ) -> Report:
        """Run the function on its own arguments, with addresses as ints, and report what ran.

        `memory` names every CPU tensor that the kernels may touch.
        Raises Hazard, Deadlock or UnsupportedInstruction.
        """
        session = Session(memory, options or Options())
        call = _Call(self._text, self._names, session, self._large_clusters)
        launch, kernel = _LAUNCH(call.launch), _KERNEL(call.kernel)
        with _lock:
            self._set(launch, kernel)
            try:
                self._function(*args)
            except Exception:
                if call.error is None:
                    raise
            finally:
                self._set(_LAUNCH(), _KERNEL())
        if call.error is not None:
            raise call.error
        session.memory.finish()
        return session.report


def load(obj: bytes, name: str, ptx: str) -> Emulated:
    """Load a function from the object that the DSL exported and the PTX of its kernels.

    The PTX may differ from the object's own, if its kernels and parameters have the same names.
    """
    return Emulated(obj, name, ptx)
