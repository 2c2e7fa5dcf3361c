"""Running a plan: made once for each form of its operands, and remembered.

A plan looks at shapes, strides, dtypes and alignment, never at values: operands of one form are
launched alike, but for their addresses. Making the plan anew would cost the host several times what
the launches do.
"""

import os
from collections.abc import Callable, Iterator, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor
from triton.experimental.gluon.nvidia.hopper import TensorDescriptor

from nvfp4.backends.settings import BATCH_INVARIANT
from nvfp4.backends.triton.launch import Launch
from nvfp4.backends.triton.tuned import TUNED

Plan = Callable[..., Launch | tuple[Launch, ...]]

ALIGNMENT = 256
"""Of each tensor in a workspace, in bytes; at least what a kernel is compiled for."""

MOST_PROGRAMS = 8192
"""Remembered at a time: of many shapes, as many token counts."""


def run(plan: Plan, *operands: Any, **options: Any) -> None:
    """Launch plan(*operands, **options): its operands are all the tensors that it is given."""
    tensors = [x for x in operands if isinstance(x, Tensor)]
    device = tensors[0].device
    if device.type != "cuda":  # interpreted
        for launch in _planned(plan, operands, options):
            launch.run()
    elif device.index == torch.cuda.current_device():
        _run_on(device, plan, operands, options, tensors)
    else:
        with torch.cuda.device(device):
            _run_on(device, plan, operands, options, tensors)


def _run_on(
    device: torch.device,
    plan: Plan,
    operands: tuple[Any, ...],
    options: dict[str, Any],
    tensors: list[Tensor],
) -> None:
    addresses = [x.data_ptr() for x in tensors]
    settings = os.environ.get(BATCH_INVARIANT), os.environ.get(TUNED)
    key = (plan, device.index, settings, *map(_form, operands), *options.values())
    program = _PROGRAMS.get(key)
    if program is not None:
        program.run(addresses, device)
        return
    launches = _planned(plan, operands, options)
    for launch in launches:
        launch.run()
    extents = [_extent(x) for x in tensors]
    if _apart(extents):
        if len(_PROGRAMS) == MOST_PROGRAMS:
            _PROGRAMS.clear()
        _PROGRAMS[key] = record(launches, extents)


def _planned(plan: Plan, operands: Sequence[Any], options: dict[str, Any]) -> tuple[Launch, ...]:
    launches = plan(*operands, **options)
    return (launches,) if isinstance(launches, Launch) else launches


def _form(x: Any) -> Any:
    """What a plan may look at."""
    if isinstance(x, Tensor):
        return x.dtype, x.shape, x.stride(), x.data_ptr() % 16 == 0
    return x


class Place(NamedTuple):
    """Where an argument points: so many bytes into an operand, or, the last, the workspace."""

    argument: int
    operand: int
    offset: int


class Step(NamedTuple):
    """A launch, but for addresses."""

    launch: Callable[..., None]
    arguments: tuple[Any, ...]
    pointers: tuple[Place, ...]
    descriptors: tuple[tuple[Place, "Described"], ...]

    def run(self, addresses: Sequence[int]) -> None:
        arguments = list(self.arguments)
        for argument, operand, offset in self.pointers:
            arguments[argument] = addresses[operand] + offset
        for (argument, operand, offset), described in self.descriptors:
            arguments[argument] = described.at(addresses[operand] + offset)
        self.launch(*arguments)


class Program(NamedTuple):
    steps: tuple[Step, ...]
    workspace: int
    """Bytes."""

    def run(self, addresses: list[int], device: torch.device) -> None:
        if self.workspace:
            workspace = torch.empty(self.workspace, dtype=torch.uint8, device=device)
            addresses.append(workspace.data_ptr())
        for step in self.steps:
            step.run(addresses)


_PROGRAMS: dict[tuple[Any, ...], Program] = {}


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
            # Not by its constructor, which would check again what has been checked.
            descriptor = object.__new__(TensorDescriptor)
            vars(descriptor).update(self.fields, base=Address(address, self.dtype))
            self.known[address] = descriptor
        return descriptor


Extent = tuple[int, int]
"""Where a tensor lies: from its first byte up to its last."""


def _extent(x: Tensor) -> Extent:
    begin = x.data_ptr()
    if not x.numel():
        return begin, begin
    last = sum((size - 1) * stride for size, stride in zip(x.shape, x.stride(), strict=True))
    return begin, begin + (last + 1) * x.element_size()


def _apart(extents: Sequence[Extent]) -> bool:
    """Whether an address tells the operand."""
    ordered = sorted(extents)
    return all(a[1] <= b[0] for a, b in zip(ordered, ordered[1:], strict=False))


class Workspace:
    """The tensors that a plan has made for itself, side by side."""

    def __init__(self) -> None:
        self.begins: dict[int, int] = {}
        self.bytes = 0

    def offset(self, x: Tensor) -> int:
        storage = x.untyped_storage()
        if storage.data_ptr() not in self.begins:
            self.begins[storage.data_ptr()] = self.bytes
            self.bytes += -(-storage.nbytes() // ALIGNMENT) * ALIGNMENT
        return self.begins[storage.data_ptr()] + x.data_ptr() - storage.data_ptr()


def record(launches: Sequence[Launch], extents: Sequence[Extent]) -> Program:
    """What has been launched on operands that lie there, apart."""
    workspace = Workspace()

    def place(argument: int, x: Tensor) -> Place:
        for operand, (begin, end) in enumerate(extents):
            if begin <= x.data_ptr() < end:
                return Place(argument, operand, x.data_ptr() - begin)
        return Place(argument, len(extents), workspace.offset(x))

    def described(arguments: Sequence[Any]) -> Iterator[tuple[Place, Described]]:
        for index, x in enumerate(arguments):
            if isinstance(x, TensorDescriptor):
                yield place(index, x.base), Described(x)

    steps = []
    for launch in launches:
        run, arguments = launch.loaded()
        pointers = [place(i, x) for i, x in enumerate(arguments) if isinstance(x, Tensor)]
        kept = [None if isinstance(x, Tensor | TensorDescriptor) else x for x in arguments]
        steps.append(Step(run, tuple(kept), tuple(pointers), tuple(described(arguments))))
    return Program(tuple(steps), workspace.bytes)
