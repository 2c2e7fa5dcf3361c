"""Recorded launches that run again on other tensors of the same shapes, strides and dtypes.

A program knows where in which tensor each pointer argument lies, so a replay only adds offsets to
the new tensors' addresses. Launches of several backends may stand in one program.
"""

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor

from nvfp4.backends.extents import apart, extent
from nvfp4.backends.recording import Launch, Pointer

ALIGNMENT = 256
"""Bytes that each tensor in a workspace is aligned to; kernels are compiled for 16 or 32."""


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
    addresses: tuple[Place, ...]
    pointers: tuple[tuple[Place, Callable[[int], Any]], ...]

    def run(self, addresses: Sequence[int]) -> None:
        arguments = list(self.arguments)
        for argument, tensor, offset in self.addresses:
            arguments[argument] = addresses[tensor] + offset
        for (argument, tensor, offset), at in self.pointers:
            arguments[argument] = at(addresses[tensor] + offset)
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

    steps = []
    for launch in launches:
        call, arguments = launch.bound()
        addresses = [place(i, x) for i, x in enumerate(arguments) if isinstance(x, Tensor)]
        pointers = [
            (place(i, x.tensor), x.at) for i, x in enumerate(arguments) if isinstance(x, Pointer)
        ]
        kept = [None if isinstance(x, Tensor | Pointer) else x for x in arguments]
        steps.append(Step(call, tuple(kept), tuple(addresses), tuple(pointers)))
    return Program(tuple(steps), workspace.bytes)
