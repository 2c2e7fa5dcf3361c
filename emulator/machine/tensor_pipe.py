"""The order in which a CTA's tensor core works.

Copies, MMAs and commits of a CTA run in the order of their issue. Each ends after a random delay
that keeps this order.
"""

from collections.abc import Callable
from typing import Any

from nvfp4.emulator import ptx


class TensorPipe:
    """The work that a CTA's tensor core still has to do."""

    def __init__(self, machine: Any) -> None:
        self._machine = machine
        self._last = 0

    def issue(self, warp: Any, instruction: ptx.Instruction, work: Callable[[], None]) -> None:
        """Do the work of an instruction after all that was issued before it."""
        machine = self._machine
        self._last = max(self._last, machine.time + machine.delay())
        machine.at(self._last, warp.placed(instruction, work))


def issue_event(warp: Any, instruction: ptx.Instruction) -> tuple[int, int]:
    """Give the event of tensor core work, and the events that this work has observed.

    All work of a warp between two commits is one event. It knows all that the warp issued before.
    """
    warp.one_lane()
    if not warp.batch:
        warp.batch = warp.new_event("tensor core work from here on", instruction)
        warp.cluster.events.mark_tensor(warp.batch)
        warp.pipe_seen |= 1 << warp.batch
    warp.pipe_seen |= warp.tensor_seen
    return warp.batch, warp.pipe_seen
