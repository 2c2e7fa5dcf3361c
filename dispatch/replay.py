"""Calls replayed: what a call launches is written down the first time, and a call of the same form
launches it on its own tensors, with none of Python's work in between.

An op looks at shapes, strides, dtypes, devices and alignment, never at values, and does nothing
but allocate, view, zero what it returns, and launch; so calls of one form differ in addresses
alone. A call that does anything else is run each time.
"""

import functools
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from nvfp4.backends.environment import call_settings
from nvfp4.backends.program import Program, record
from nvfp4.backends.recording import RECORDING, Recording, recorded
from nvfp4.dispatch.registry import BACKENDS

Run = Callable[..., Any]

MOST = 8192
"""Forms of an op that are remembered at a time: of many shapes, as many token counts."""

_ALLOCATIONS = (
    torch.ops.aten.empty.memory_format,
    torch.ops.aten.empty_strided.default,
    torch.ops.aten.new_empty.default,
    torch.ops.aten.new_empty_strided.default,
)
_ZEROS = (torch.ops.aten.zeros.default, torch.ops.aten.new_zeros.default)


class Call(NamedTuple):
    """Remembered: what it returns, and what it launches on its tensors and those."""

    outputs: tuple[Callable[..., Tensor], ...]
    """Each allocates an output on a given device."""
    is_tuple: bool
    program: Program

    def run(self, device: torch.device, addresses: list[int]) -> Any:
        outputs = [make(device=device) for make in self.outputs]
        for out in outputs:
            addresses.append(out.data_ptr())
        if device.index == torch.cuda.current_device():
            self.program.run(addresses, device)
        else:
            with torch.cuda.device(device):
                self.program.run(addresses, device)
        return tuple(outputs) if self.is_tuple else outputs[0]


def replayed(run: Run) -> Run:
    """`run`, an op's implementation, replaying calls like earlier ones."""
    known: dict[tuple[Any, ...], Call | None] = {}

    @functools.wraps(run)
    def call(*args: Any, **kwargs: Any) -> Any:
        addresses: list[int] = []
        form: list[Any] = []
        first: Any = None  # all tensors are on its device, or the call is refused when it is run
        for x in (*args, *kwargs.values()):
            if isinstance(x, Tensor):
                first = x if first is None else first
                address = x.data_ptr()
                addresses.append(address)
                form += x.dtype, x.shape, x.stride(), x.get_device(), address % 16 == 0
            else:
                form.append(x)
        # What is written down runs. Of tensors at one address, no address tells which is meant.
        written = RECORDING.get() is not None
        if written or not _launches_alone(first) or len(set(addresses)) < len(addresses):
            return run(*args, **kwargs)
        key = (*form, *kwargs, *call_settings())
        remembered = known.get(key)
        if remembered is not None:
            return remembered.run(first.device, addresses)
        if key in known:
            return run(*args, **kwargs)
        outputs, remembered = _record(run, args, kwargs)
        if len(known) == MOST:
            known.clear()
        known[key] = remembered
        return outputs

    return call


def _launches_alone(x: Tensor) -> bool:
    """Whether what runs on x is launched by addresses: on a CPU kernels are interpreted."""
    return x.is_cuda


class _Watch(TorchDispatchMode):
    """Sees whether torch does any work, but for zeroing tensors before anything is launched."""

    def __init__(self, recording: Recording) -> None:
        super().__init__()
        self.recording = recording
        self.works = False
        self.zeroed: set[int] = set()
        """Their storages' addresses."""

    def __torch_dispatch__(
        self, func: Any, types: Any, args: Sequence[Any] = (), kwargs: Any = None
    ) -> Any:
        result = func(*args, **(kwargs or {}))
        aliases = [r.alias_info for r in func._schema.returns]
        if func in _ZEROS or (func is torch.ops.aten.zero_.default and _is_whole(result)):
            self.zeroed.add(result.untyped_storage().data_ptr())
            self.works |= bool(self.recording.launches)
        elif func not in _ALLOCATIONS:
            is_view = bool(aliases) and all(alias and not alias.is_write for alias in aliases)
            self.works |= not is_view
        return result


def _record(run: Run, args: Sequence[Any], kwargs: dict[str, Any]) -> tuple[Any, Call | None]:
    """What a call returns, and the call to remember; None if it cannot be replayed."""
    with recorded() as recording, _Watch(recording) as watch:
        outputs = run(*args, **kwargs)
    results = outputs if isinstance(outputs, tuple) else (outputs,)
    tensors = [x for x in (*args, *kwargs.values()) if isinstance(x, Tensor)]
    replayable = {b.name for b in BACKENDS if b.replays}
    if watch.works or not recording.backends or not recording.backends <= replayable:
        return outputs, None
    if not all(map(_is_whole, results)):
        return outputs, None
    program = record(recording.launches, [*tensors, *results])
    if program is None:
        return outputs, None
    storages = [x.untyped_storage().data_ptr() for x in results]
    if not watch.zeroed <= set(storages):
        return outputs, None
    made = (
        functools.partial(
            torch.zeros if storage in watch.zeroed else torch.empty, x.shape, dtype=x.dtype
        )
        for x, storage in zip(results, storages, strict=True)
    )
    return outputs, Call(tuple(made), isinstance(outputs, tuple), program)


def _is_whole(x: Tensor) -> bool:
    """Whether x is as torch.empty makes it, and all there is of its memory."""
    return x.is_contiguous() and x.untyped_storage().nbytes() == x.nbytes
