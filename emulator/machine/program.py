"""A kernel in the form that warps run: one step for each instruction, over numbered slots."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

from nvfp4.emulator import ptx
from nvfp4.emulator.engine.records import Packed
from nvfp4.emulator.engine.registers import Layout
from nvfp4.emulator.machine.warp import Warp

Step = Callable[[Warp], int | None]
"""A function that runs an instruction on a warp; it returns None, a jump's target or an outcome."""


@dataclass(frozen=True)
class Program:
    """A kernel's steps and the slots that they use, for launches of any grid.

    A slot holds a register, a constant, a special register or the address of a variable.
    """

    kernel: ptx.Kernel
    shared: Sequence[ptx.Variable]
    """The shared variables of the kernel's module."""
    steps: Sequence[Step]
    code: Packed
    """What the engine runs of it."""
    layout: Layout
    """The places of the slots, and the constants among them."""
    symbols: Mapping[int, ptx.Symbol]
    """The slots that hold special registers and addresses, filled when a warp starts."""
    registers: Mapping[str, int]
    """The slot of each register."""

    def uses(self, instruction: str) -> bool:
        """Say whether the kernel has such an instruction, named with its first modifier."""
        name, _, modifier = instruction.partition(".")
        every = self.kernel.instructions
        return any(i.opcode == name and modifier in i.modifiers[:1] for i in every)
