"""Launches as a program: written down with the places of their arguments, to be run again on other
tensors of the same form.
"""

from collections.abc import Callable, Iterator, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor
from triton.experimental.gluon.nvidia.hopper import TensorDescriptor

from nvfp4.backends.contract import RECORDING
from nvfp4.backends.triton.runtime.compat import copy_descriptor
from nvfp4.backends.triton.runtime.launch import Launch

ALIGNMENT = 256
"""Of each tensor in a workspace, in bytes; at least what a kernel is compiled for."""


def run(*launches: Launch) -> None:
    """Launch them in order, and write them down if that is asked."""
    for launch in launches:
        launch.run()
    recording = RECORDING.get()
    if recording is not None:
        recording.launches += launches


class Place(NamedTuple):
    """Where an argument points: so many bytes into a tensor, or, the last, the workspace."""

    argument: int
    tensor: int
    offset: int


class Step(NamedTuple):
    """A launch, but for addresses."""

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
    steps: tuple[Step, ...]
    workspace: int
    """Bytes."""

    def run(self, addresses: Sequence[int], device: torch.device) -> None:
        """On tensors at these addresses of the current device."""
        if self.workspace:
            workspace = torch.empty(self.workspace, dtype=torch.uint8, device=device)
            addresses = [*addresses, workspace.data_ptr()]
        for step in self.steps:
            step.run(addresses)


class Address(NamedTuple):
    """A tensor, as much of it as a launch asks for."""

    address: int
    dtype: torch.dtype

    def data_ptr(self) -> int:
        return self.address


class Described:
    """A tensor descriptor, but for its address. Those last asked for are kept: weights stay where
    they are.
    """

    MOST = 1024

    def __init__(self, descriptor: TensorDescriptor) -> None:
        self.dtype = descriptor.base.dtype
        self.fields = vars(descriptor) | {"base": None}
        self.known: dict[int, TensorDescriptor] = {}

    def at(self, address: int) -> TensorDescriptor:
        descriptor = self.known.get(address)
        if descriptor is None:
            if len(self.known) == self.MOST:
                self.known.clear()
            descriptor = copy_descriptor(self.fields, Address(address, self.dtype))
            self.known[address] = descriptor
        return descriptor


Extent = tuple[int, int]
"""Where a tensor lies: from its first byte up to its last."""


def extent(x: Tensor) -> Extent:
    begin = x.data_ptr()
    if not x.numel():
        return begin, begin
    last = sum((size - 1) * stride for size, stride in zip(x.shape, x.stride(), strict=True))
    return begin, begin + (last + 1) * x.element_size()


def apart(extents: Sequence[Extent]) -> bool:
    """Whether an address tells the tensor."""
    ordered = sorted(extents)
    return all(a[1] <= b[0] for a, b in zip(ordered, ordered[1:], strict=False))


class Workspace:
    """The tensors that were made on the way, side by side."""

    def __init__(self) -> None:
        self.begins: dict[int, int] = {}
        self.bytes = 0

    def offset(self, x: Tensor) -> int:
        storage = x.untyped_storage()
        if storage.data_ptr() not in self.begins:
            self.begins[storage.data_ptr()] = self.bytes
            self.bytes += -(-storage.nbytes() // ALIGNMENT) * ALIGNMENT
        return self.begins[storage.data_ptr()] + x.data_ptr() - storage.data_ptr()


def record(launches: Sequence[Launch], tensors: Sequence[Tensor]) -> Program | None:
    """What has been launched, as a function of where these tensors are; all others that it was
    launched on were made on the way. None: the tensors overlap.
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
