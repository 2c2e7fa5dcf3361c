"""Writing down what a call launches, so that it can be replayed."""

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from contextvars import ContextVar
from typing import Any, NamedTuple, Protocol

from torch import Tensor


class Pointer(NamedTuple):
    """An argument that is made from an address, such as a tensor map."""

    tensor: Tensor
    """Its address is what the argument is made from."""
    at: Callable[[int], Any]
    """Makes the argument; it does not keep the tensor."""


class Launch(Protocol):
    """A kernel launch of a backend, as it is written down."""

    def bound(self) -> tuple[Callable[..., None], Sequence[Any]]:
        """The function that launches on the current device's stream, and its arguments.

        A Tensor among these stands for its address, a Pointer for what it makes from one.
        """
        ...

    def describe(self) -> str:
        """The kernel, with what was compiled into it."""
        ...


class Recording:
    """A call that is written down: the backends that ran it, and what they launched, in order."""

    def __init__(self) -> None:
        self.backends: set[str] = set()
        self.launches: list[Launch] = []


RECORDING: ContextVar[Recording | None] = ContextVar("nvfp4 recording", default=None)
"""Where a backend that can replay its launches writes them down."""


@contextmanager
def recorded() -> Iterator[Recording]:
    """Run the calls within the context, and write them down."""
    recording = Recording()
    token = RECORDING.set(recording)
    try:
        yield recording
    finally:
        RECORDING.reset(token)


def write_down(*launches: Launch) -> None:
    """Add launches to the recording, if one is active."""
    recording = RECORDING.get()
    if recording is not None:
        recording.launches += launches
