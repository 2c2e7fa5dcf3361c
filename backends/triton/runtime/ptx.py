"""Compiling a launch's kernel to PTX, without ptxas and without a GPU."""

import pickle
from collections.abc import Mapping
from importlib import import_module
from typing import Any, NamedTuple

from torch import Tensor
from triton.experimental.gluon.nvidia.hopper import TensorDescriptor

from nvfp4.backends.triton.runtime.ahead import compile_launch
from nvfp4.backends.triton.runtime.architecture import interpreting
from nvfp4.backends.triton.runtime.compat import copy_descriptor
from nvfp4.backends.triton.runtime.compiler_process import compiler
from nvfp4.backends.triton.runtime.descriptors import Address
from nvfp4.backends.triton.runtime.launch import Launch


class Ptx(NamedTuple):
    """A kernel's PTX, and what a launch of it needs to know."""

    text: str
    kernel: str
    signature: tuple[tuple[str, str], ...]
    """Triton's name and type of each argument that is not a constant."""
    num_warps: int
    """All warps of a program, with those of warp specialization."""
    shared: int
    """Bytes of dynamic shared memory."""
    cluster: tuple[int, int, int]
    tensor_maps: tuple[Mapping[str, Any], ...]
    """How each tensor descriptor is made a tensor map."""
    global_scratch: int
    """Bytes of scratch memory for each program."""


class Request(NamedTuple):
    """A launch without its tensors, which another process can compile."""

    module: str
    kernel: str
    launch: Launch
    """Its kernel is None, and its tensors are addresses."""
    sm: int


_COMPILED: dict[bytes, Ptx] = {}
"""What this process has compiled, by pickled request."""


def compiled(launch: Launch, sm: int) -> Ptx:
    """The PTX that an sm_<sm> GPU would run for `launch`."""
    request = pickle.dumps(_request(launch, sm))
    if request not in _COMPILED:
        _COMPILED[request] = _elsewhere(request) if interpreting() else compile_request(request)
    return _COMPILED[request]


def _request(launch: Launch, sm: int) -> Request:
    function = launch.kernel.fn
    args = tuple(map(_without_data, launch.args))
    return Request(
        function.__module__, function.__name__, launch._replace(kernel=None, args=args), sm
    )


def _without_data(argument: Any) -> Any:
    if isinstance(argument, Tensor):
        return Address(argument.data_ptr() % 16, argument.dtype)
    if isinstance(argument, TensorDescriptor):
        return copy_descriptor(vars(argument), _without_data(argument.base))
    return argument


def _elsewhere(request: bytes) -> Ptx:
    """Let another process compile, which does not interpret."""
    answer = compiler().ask(request)
    if isinstance(answer, str):
        raise RuntimeError(f"nvfp4: a kernel cannot be compiled: {answer}")
    return answer


def compile_request(pickled: bytes) -> Ptx:
    """Compile what is requested, in this process."""
    request: Request = pickle.loads(pickled)
    kernel = getattr(import_module(request.module), request.kernel)
    code = compile_launch(request.launch._replace(kernel=kernel), request.sm, assemble=False)
    metadata = code.metadata
    types = code.src.signature.items()
    return Ptx(
        code.asm["ptx"],
        metadata.name,
        tuple((name, kind) for name, kind in types if kind != "constexpr"),
        metadata.num_warps,
        metadata.shared,
        (metadata.num_ctas, 1, 1),
        tuple(metadata.tensordesc_meta or ()),
        metadata.global_scratch_size,
    )
