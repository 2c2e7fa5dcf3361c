"""Calling a compiled CuTe DSL function with its launches emulated.

The function's own host code runs: it computes the grid, encodes the tensor maps, fills in the
parameters. Only the CUDA runtime below it is ours (cudart.c).
"""

import ctypes
import hashlib
import os
import platform
import subprocess
import tempfile
import threading
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from functools import cache, lru_cache
from importlib import import_module
from pathlib import Path
from shutil import which
from typing import Any

import torch

from nvfp4.backends.cutedsl.runtime.cache import Entry, get
from nvfp4.emulator import ptx as ptx_
from nvfp4.emulator.hazards import Unsupported
from nvfp4.emulator.instructions import DECODERS
from nvfp4.emulator.isa.program import Program
from nvfp4.emulator.machine.machine import Dim, Launch, Machine, Options, Report
from nvfp4.emulator.memory.global_memory import GlobalMemory

_SOURCE = Path(__file__).with_name("cudart.c")
_CLUSTER_DIMENSION = 4
"""cudaLaunchAttributeClusterDimension"""
_KNOWN_ATTRIBUTES = (0, 2, _CLUSTER_DIMENSION, 6)
"""Nothing, cooperative, cluster dimension, programmatic stream serialization."""


class _Attribute(ctypes.Structure):
    _fields_ = (("id", ctypes.c_int32), ("_", ctypes.c_int32), ("value", ctypes.c_uint32 * 16))


class _Config(ctypes.Structure):
    """cudaLaunchConfig_t"""

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
"""One emulated call at a time: the C library has one pair of callbacks."""


class _Call:
    """The call under way: what its launches need, and what they raised."""

    def __init__(self, text: str, names: list[str], session: "_Session") -> None:
        self.text, self.names, self.session = text, names, session
        self.error: BaseException | None = None

    def kernel(self, out: Any, name: bytes) -> int:
        self.names.append(name.decode())
        out[0] = len(self.names)  # a handle: 1, 2, ...
        return 0

    def launch(self, config: Any, handle: int, arguments: Any) -> int:
        # A Python exception cannot cross the host code, nor does that survive an error of its own:
        # all goes well for it, and the call raises afterwards.
        if self.error is None:
            try:
                self._launch(config.contents, self.names[handle - 1], arguments)
            except BaseException as error:
                self.error = error
        return 0

    def _launch(self, config: _Config, name: str, arguments: Any) -> None:
        cluster: Dim = (1, 1, 1)
        for attribute in config.attributes[: config.attribute_count]:
            if attribute.id not in _KNOWN_ATTRIBUTES:
                raise Unsupported(f"launch attribute {attribute.id}")
            if attribute.id == _CLUSTER_DIMENSION:
                x, y, z = attribute.value[:3]
                cluster = (x, y, z)
        kernel = _module(self.text).kernel(name)
        parameters = bytearray()
        for i, parameter in enumerate(kernel.parameters):
            parameters += bytes(kernel.parameter_offsets[parameter.name] - len(parameters))
            parameters += ctypes.string_at(arguments[i], parameter.size)
        x, y, z = config.grid
        bx, by, bz = config.block
        self.session.run(
            self.text,
            name,
            (x, y, z),
            (bx, by, bz),
            cluster,
            config.dynamic_shared,
            bytes(parameters),
        )


class _Session:
    """The launches of one call, over the same memory."""

    def __init__(self, memory: Mapping[str, torch.Tensor], options: Options) -> None:
        self.memory = GlobalMemory(memory, options.outputs, options.check)
        self.options = options
        self.report = Report()

    def run(
        self,
        text: str,
        kernel: str,
        grid: Dim,
        block: Dim,
        cluster: Dim,
        dynamic_shared: int,
        parameters: bytes,
    ) -> None:
        program = _program(text, kernel)
        launch = Launch(program, _module(text), grid, block, cluster, dynamic_shared, parameters)
        with _one_thread():
            Machine(launch, self.memory, self.options, self.report).run()
        self.memory.launch_ended()
        self.report.launches += 1


@contextmanager
def _one_thread() -> Iterator[None]:
    """torch with one thread: an MMA is too small for more."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(threads)


@lru_cache(maxsize=64)
def _module(text: str) -> ptx_.Module:
    return ptx_.parse(text)


@lru_cache(maxsize=64)
def _program(text: str, kernel: str) -> Program:
    module = _module(text)
    return Program(module.kernel(kernel), module.shared, DECODERS)


@cache
def _library() -> str:
    """A path to load cudart.c from, compiled once and kept in the cache."""
    source = _SOURCE.read_bytes()
    key = f"cudart {platform.machine()} {hashlib.sha256(source).hexdigest()}"
    # Loaded from memory: nobody else can change it, and temporary folders may forbid execution.
    file = os.memfd_create("cudart.so")
    with open(file, "wb", closefd=False) as library:
        library.write(get(key, _compile_library)["library"])
    return f"/proc/self/fd/{file}"


def _compile_library() -> Entry:
    compiler = os.environ.get("CC") or next(filter(which, ("cc", "gcc", "clang")), None)
    if compiler is None:
        raise RuntimeError("the emulator needs a C compiler (cc, gcc, clang or $CC), got none")
    with tempfile.TemporaryDirectory() as scratch:
        built = Path(scratch) / "cudart.so"
        command = [compiler, "-shared", "-fPIC", "-O1", str(_SOURCE), "-o", str(built)]
        subprocess.run(command, check=True, capture_output=True, text=True)
        return {"library": built.read_bytes()}


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
"""What an exported object needs of the CUDA runtime and the DSL's."""


def _rebound(obj: bytes) -> bytes:
    """The object with its runtime's symbols renamed, "cu" to "em", to cudart.c's: a process that
    has imported the DSL has the real ones loaded, and they would be found first.
    """
    for name in _RUNTIME:
        ours = name.replace("cu", "em", 1) if "cu" in name else name.replace("Cu", "Em", 1)
        obj = obj.replace(f"{name}\0".encode(), f"{ours}\0".encode())
    return obj


class Emulated:
    """A compiled function. Calling it runs its kernels on the CPU."""

    def __init__(self, obj: bytes, name: str, ptx: str) -> None:
        # Both cost seconds to import, and neither has types.
        tvm_ffi = import_module("tvm_ffi")
        engines = import_module("cutlass._mlir._mlir_libs._cutlass_ir._execution_engine")

        library = _library()
        self._set = ctypes.CDLL(library, mode=ctypes.RTLD_GLOBAL).emulator_set
        self._text = ptx
        _module(ptx)
        self._names: list[str] = []
        libraries = [library, tvm_ffi.libinfo.find_libtvm_ffi()]
        engine = engines.BinaryExecutionEngine(_rebound(obj), libraries, True)
        address = engine.lookup(f"__tvm_ffi_{name}")
        self._function = tvm_ffi.Function.__from_extern_c__(address, keep_alive_object=engine)

    def __call__(
        self,
        *args: Any,
        memory: Mapping[str, torch.Tensor],
        options: Options | None = None,
    ) -> Report:
        """Runs the function on `args`, as it takes them; addresses are ints.

        memory: every tensor that its kernels may touch, by name. Raises Hazard, Deadlock or
        UnsupportedInstruction.
        """
        session = _Session(memory, options or Options())
        call = _Call(self._text, self._names, session)
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
    """A function from the object that the DSL exported, and the PTX of its kernels.

    The PTX may be another than the object's own, with the same kernels and parameters.
    """
    return Emulated(obj, name, ptx)


def execute(
    ptx: str,
    kernel: str,
    grid: Dim,
    block: Dim,
    cluster: Dim = (1, 1, 1),
    dynamic_smem: int = 0,
    params: bytes = b"",
    memory: Mapping[str, torch.Tensor] | None = None,
    options: Options | None = None,
) -> Report:
    """Runs one kernel of a PTX module with its parameters as bytes."""
    session = _Session(memory or {}, options or Options())
    session.run(ptx, kernel, grid, block, cluster, dynamic_smem, params)
    session.memory.finish()
    return session.report
