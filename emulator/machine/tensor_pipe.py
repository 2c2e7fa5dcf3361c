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


ISA_PIPELINES = frozenset(
    {("mma", "mma"), ("cp", "mma"), ("shift", "mma"), ("shift", "cp"), ("mma", "shift")}
)
"""The pairs of tcgen05 instructions that run in the order of their issue by one thread.

PTX ISA, "Pipelined tcgen05 instructions". Two MMAs only do with the same accumulator and shape. A
commit follows all work of its thread.
"""


def issue_event(
    warp: Any, instruction: ptx.Instruction, kind: str, key: Any = None
) -> tuple[int, int]:
    """Give the event of tensor core work, and the events that this work has observed.

    All work of a warp between two commits is one event. It knows all that the warp issued before;
    with the option tcgen05_pipelines, each instruction is an event, and knows those that it is
    ordered after. key: an MMA's accumulator and shape.
    """
    warp.one_lane()
    pipelines = warp.machine.options.tcgen05_pipelines
    if pipelines is not None:
        return _pipelined(warp, instruction, kind, key, pipelines)
    if not warp.batch:
        warp.batch = warp.new_event("tensor core work from here on", instruction)
        warp.cluster.events.mark_tensor(warp.batch)
        warp.pipe_seen |= 1 << warp.batch
    warp.pipe_seen |= warp.tensor_seen
    return warp.batch, warp.pipe_seen


def _pipelined(
    warp: Any, instruction: ptx.Instruction, kind: str, key: Any, pipelines: frozenset[Any]
) -> tuple[int, int]:
    """Do issue_event where some pairs of instructions alone are ordered."""
    warp.pipe_seen |= warp.tensor_seen
    if kind == "commit":
        return 0, warp.pipe_seen
    event = warp.new_event(f"tcgen05.{kind}", instruction)
    warp.cluster.events.mark_tensor(event)
    seen = warp.tensor_seen | 1 << event
    issued = warp.state.setdefault("pipelines", {})
    for (before, its_key), events in issued.items():
        if (before, kind) in pipelines and (before != kind or its_key == key):
            seen |= events
    issued[kind, key] = issued.get((kind, key), 0) | seen
    warp.pipe_seen |= seen
    return event, seen
