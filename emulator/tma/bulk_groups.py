"""Groups of bulk stores, by which a warp waits until their sources have been read."""

from dataclasses import dataclass
from typing import Any

from nvfp4.emulator import ptx
from nvfp4.emulator.isa.modifiers import Modifiers
from nvfp4.emulator.machine.outcomes import BLOCKED
from nvfp4.emulator.machine.program import Step


@dataclass(slots=True)
class Transfer:
    """A bulk store that has been issued."""

    event: int
    read: bool = False
    """Whether its source has been read."""


def commit(warp: Any) -> None:
    """Make a group of the stores that a warp has issued since the last one."""
    warp.bulk_groups.append(warp.bulk)
    warp.bulk = []


def decode_wait(instruction: ptx.Instruction, modifiers: Modifiers) -> Step:
    """Make the step that waits for all but the n youngest groups (.read: for their reads)."""
    modifiers.take("read")
    modifiers.done()
    (count,) = instruction.operands
    if not isinstance(count, ptx.Immediate):
        raise instruction.unsupported("only with a constant")
    keep = int(count.value)

    def step(warp: Any) -> int | None:
        groups = warp.bulk_groups
        done = groups[: len(groups) - keep] if keep < len(groups) else []
        if any(not transfer.read for group in done for transfer in group):
            return BLOCKED
        for group in done:
            for transfer in group:
                warp.seen |= 1 << transfer.event
        del groups[: len(done)]
        return None

    return step
