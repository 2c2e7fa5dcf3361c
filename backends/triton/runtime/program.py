"""Recorded launches that run again on other tensors of the same shapes, strides and dtypes.

A program knows where in which tensor each pointer argument lies, so a replay only adds offsets to
the new tensors' addresses.
"""

from collections.abc import Callable, Iterator, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor
from triton.experimental.gluon.nvidia.hopper import TensorDescriptor

from nvfp4.backends.emulation import emulated_sm
from nvfp4.backends.recording import RECORDING
from nvfp4.backends.triton.runtime import emulated
from nvfp4.backends.triton.runtime.compat import copy_descriptor
from nvfp4.backends.triton.runtime.extents import apart, extent
from nvfp4.backends.triton.runtime.launch import Address, Launch

ALIGNMENT = 256
"""Bytes that each tensor in a workspace is aligned to; kernels are compiled for 16."""


def run(*launches: Launch) -> None:
    """Launch in order, on a GPU, emulated or interpreted; record if a recording is active."""
    sm = emulated_sm() if launches[0].device.type == "cpu" else 0
    for launch in launches:
        if sm:
            emulated.run(launch, sm)
        else:
            launch.run()
    recording = RECORDING.get()
    if recording is not None:
        recording.launches += launches


class Place(NamedTuple):
    """Where a pointer argument points: `offset` bytes into a tensor.

    The index after the last tensor is the workspace.
    """

    argument: int
    tensor: int
    offset: int


class Step(NamedTuple):
    """One launch without its addresses."""

    launch: Callable[..., None]
    arguments: tuple[Any, ...]
    pointers: tuple[Place, ...]
    descriptors: tuple[tuple[Place, "Described"], ...]

    def run(self, addresses: Sequence[int]) -> None:
        arguments = list(self.arguments)
        for argument, tensor, offset in self.pointers:
            arguments[argument] = addresses[tensor] + offset
        for (argument, tensor, offset), described in self.descriptors:
            arguments[argument] = described.at(addresses[tensor] + offset)
        self.launch(*arguments)


class Program(NamedTuple):
    """A call's launches, and the bytes of workspace for the tensors that they make."""

    steps: tuple[Step, ...]
    workspace: int

    def run(self, addresses: Sequence[int], device: torch.device) -> None:
        """Launch on tensors at these addresses of the current device."""
        if self.workspace:
            workspace = torch.empty(self.workspace, dtype=torch.uint8, device=device)
            addresses = [*addresses, workspace.data_ptr()]
        for step in self.steps:
            step.run(addresses)


class Described:
    """A tensor descriptor without its address.

    It keeps the descriptors that it made, up to MOST: weights stay at their addresses.
    """

    MOST = 1024

    def __init__(self, descriptor: TensorDescriptor) -> None:
        self.dtype = descriptor.base.dtype
        self.fields = vars(descriptor) | {"base": None}
        self.known: dict[int, TensorDescriptor] = {}

    def at(self, address: int) -> TensorDescriptor:
        """The descriptor of a tensor at this address."""
        descriptor = self.known.get(address)
        if descriptor is None:
            if len(self.known) == self.MOST:
                self.known.clear()
            descriptor = copy_descriptor(self.fields, Address(address, self.dtype))
            self.known[address] = descriptor
        return descriptor


class Workspace:
    """Lays out the tensors that the launches make, one after the other."""

    def __init__(self) -> None:
        self.begins: dict[int, int] = {}
        self.bytes = 0

    def offset(self, x: Tensor) -> int:
        """The bytes from the workspace's start to a tensor's first element."""
        storage = x.untyped_storage()
        if storage.data_ptr() not in self.begins:
            self.begins[storage.data_ptr()] = self.bytes
            self.bytes += -(-storage.nbytes() // ALIGNMENT) * ALIGNMENT
        return self.begins[storage.data_ptr()] + x.data_ptr() - storage.data_ptr()


def record(launches: Sequence[Launch], tensors: Sequence[Tensor]) -> Program | None:
    """Record launches as a program over `tensors`, the call's inputs and outputs.

    Every other tensor that they were launched on is taken to be made by the call. None: the tensors
    overlap.
    """
    extents = [extent(x) for x in tensors]
    if not apart(extents):
        return None
    workspace = Workspace()

    def place(argument: int, x: Tensor) -> Place:
        for index, (begin, end) in enumerate(extents):
            if begin <= x.data_ptr() < end:
                return Place(argument, index, x.data_ptr() - begin)
        return Place(argument, len(extents), workspace.offset(x))

    def described(arguments: Sequence[Any]) -> Iterator[tuple[Place, Described]]:
        for index, x in enumerate(arguments):
            if isinstance(x, TensorDescriptor):
                yield place(index, x.base), Described(x)

    steps = []
    for launch in launches:
        call, arguments = launch.loaded()
        pointers = [place(i, x) for i, x in enumerate(arguments) if isinstance(x, Tensor)]
        kept = [None if isinstance(x, Tensor | TensorDescriptor) else x for x in arguments]
        steps.append(Step(call, tuple(kept), tuple(pointers), tuple(described(arguments))))
    return Program(tuple(steps), workspace.bytes)
