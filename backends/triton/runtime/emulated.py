"""Run a launch on CPU tensors, in the emulator.

The kernel's PTX is what Triton compiles for a GPU, and its parameters are laid out as Triton's own
launcher does.
"""

import struct
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor
from triton.experimental.gluon.nvidia.hopper import TensorDescriptor

from nvfp4.backends.extents import contains, overlap
from nvfp4.backends.triton.runtime.launch import Launch
from nvfp4.backends.triton.runtime.ptx import Ptx, compiled
from nvfp4.emulator import Options, Report, encode_tensor_map, execute

WARP = 32
"""Threads of a warp."""

FORMATS = {"i1": "b", "i8": "b", "i16": "h", "i32": "i", "i64": "q", "fp32": "f", "fp64": "d"}
"""How Triton's types of numbers are packed; u1 to u64 are as i1 to i64."""

MAP_ALIGNMENT = 64
"""Bytes that a tensor map among the parameters is aligned to."""


def run(launches: Sequence[Launch], sm: int) -> None:
    """Run launches one after the other as an sm_<sm> GPU would.

    Every hazard that the emulator sees is an error.
    """
    for index, launch in enumerate(launches):
        run_one(launch, sm, options_of(launch, launches[:index]))


def options_of(launch: Launch, before: Sequence[Launch]) -> Options:
    """How a launch is emulated after those `before` it.

    With PDL, a kernel may load before the end of the one before it what that one was not given: the
    weights. What runs before the first launch is not known, so that may load nothing.
    """
    given = [x for each in before for x in memory_of(each).values()]
    memory = memory_of(launch).items()
    new = (name for name, x in memory if given and not any(overlap(x, y) for y in given))
    # Triton emits no tcgen05.fence, and LLVM moves uses of a tcgen05.ld before the wait for it.
    return Options(constants=frozenset(new), tmem_load_waits=False, tcgen05_fences=False)


def run_one(launch: Launch, sm: int, options: Options) -> Report:
    """Run one launch and report what ran."""
    ptx = compiled(launch, sm)
    memory = memory_of(launch)
    x, y, z = (*launch.grid, 1, 1)[:3]
    scratch = torch.empty(x * y * z * ptx.global_scratch, dtype=torch.uint8)
    return execute(
        ptx.text,
        ptx.kernel,
        (x, y, z),
        (WARP * ptx.num_warps, 1, 1),
        ptx.cluster,
        ptx.shared,
        parameters(launch, ptx, scratch.data_ptr()),
        memory | ({"global_scratch": scratch} if scratch.numel() else {}),
        options,
    )


def memory_of(launch: Launch) -> dict[str, Tensor]:
    """Name the tensors that the launch is given; of several that share memory, the largest."""
    named = [(name, _tensor(value)) for name, value in _arguments(launch).items()]
    tensors = [(name, x) for name, x in named if x is not None and x.numel()]
    tensors.sort(key=lambda item: -item[1].nbytes)
    kept: dict[str, Tensor] = {}
    for name, x in tensors:
        if not any(contains(other, x) for other in kept.values()):
            kept[name] = x
    return kept


def _arguments(launch: Launch) -> dict[str, Any]:
    return dict(zip(launch.kernel.arg_names, launch.args, strict=False))


def _tensor(value: Any) -> Tensor | None:
    if isinstance(value, TensorDescriptor):
        return value.base
    return value if isinstance(value, Tensor) else None


def parameters(launch: Launch, ptx: Ptx, scratch: int = 0) -> bytes:
    """Lay the arguments out as the kernel's parameters, constants left out.

    Triton adds two pointers at the end: scratch memory, and a profiler's.
    """
    laid_out = bytearray()
    for alignment, data in _parameters(launch, ptx):
        laid_out += bytes(-len(laid_out) % alignment) + data
    return bytes(laid_out + bytes(-len(laid_out) % 8) + struct.pack("<QQ", scratch, 0))


def _parameters(launch: Launch, ptx: Ptx) -> Iterator[tuple[int, bytes]]:
    """Each parameter's alignment and bytes."""
    arguments, tensor_maps = _arguments(launch), iter(ptx.tensor_maps)
    for name, kind in ptx.signature:
        value = arguments[name]
        if isinstance(value, TensorDescriptor):
            yield MAP_ALIGNMENT, _tensor_map(value, next(tensor_maps))
            for size in value.shape:
                yield 4, struct.pack("<i", size)
            for stride in value.strides:
                yield 8, struct.pack("<q", stride)
        elif kind.startswith("*"):
            yield 8, struct.pack("<Q", value.data_ptr())
        else:
            data = struct.pack("<" + _format(kind), value)
            yield len(data), data


def _format(kind: str) -> str:
    if kind.startswith("u"):
        return FORMATS["i" + kind[1:]].upper()
    return FORMATS[kind]


def _tensor_map(descriptor: TensorDescriptor, made: Mapping[str, Any]) -> bytes:
    """The tensor map of a descriptor; `made` is what Triton says of it."""
    size = made["elem_size"]
    return encode_tensor_map(
        descriptor.base.data_ptr(),
        made["elem_type"],
        made["swizzle"],
        descriptor.shape[::-1],
        [stride * size for stride in descriptor.strides[-2::-1]],
        made["block_size"][::-1],
    )
