"""Writing down what a call launches, so that it can be replayed."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from typing import Any

import torch


class Recording:
    """A call that is written down: the backends that ran it, and what they launched, in order."""

    def __init__(self) -> None:
        self.backends: set[str] = set()
        self.launches: list[Any] = []


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


Replay = Callable[[list[int], torch.device], None]
"""Launches what was written down on tensors at other addresses, of the current device."""
