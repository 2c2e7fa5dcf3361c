"""The options of a run, and its report."""

from collections import Counter
from dataclasses import dataclass, field


@dataclass(frozen=True)
class Options:
    """How a run is scheduled and what it checks."""

    seed: int = 0
    """The seed of every random choice."""
    delay: int = 0
    """The longest time that asynchronous work takes, in instructions."""
    outputs: frozenset[str] = frozenset()
    """Names of tensors that start uninitialised and must be written whole."""
    constants: frozenset[str] = frozenset()
    """Names of tensors that no earlier kernel writes.

    Bulk copies may load them before griddepcontrol.wait, as kernels do with weights.
    """
    max_steps: int = 200_000_000
    """The number of instructions after which a run counts as a livelock."""
    check: bool = True
    """Whether hazards are looked for."""
    tmem_load_waits: bool = True
    """Whether a register that tcgen05.ld writes is usable only after tcgen05.wait::ld.

    PTX ISA has it so. False is for kernels that leave the wait out, as those of CUTLASS do: they
    rely on hardware that waits for registers.
    """
    tcgen05_fences: bool = True
    """Whether tcgen05.fence alone orders accesses to tensor memory around barriers.

    PTX ISA has it so. False is for kernels that leave the fences out, as those of CUTLASS do.
    """
    one_lane_stores: bool = True
    """Whether a bulk store must be issued by one lane; each lane issues its own otherwise.

    False lets lanes that agree issue one between them, as ptxas does: CUTLASS relies on it.
    """
    tcgen05_pipelines: frozenset[tuple[str, str]] | None = None
    """The pairs of a thread's tcgen05 instructions that count as ordered; None for all of them.

    PTX ISA has those of machine/tensor_pipe.py. ("mma", "cp") is not among them: that an MMA has
    read its scales before a later copy writes over them.
    """
    quantum: int = 64
    """The most instructions that a warp runs at a time."""
    multiprocessors: int = 128
    """The number of SMs: so many CTAs run at once."""


@dataclass
class Report:
    """What a run has executed: launches, instructions, and counts of TMA and tensor core work."""

    launches: int = 0
    instructions: int = 0
    counts: Counter[str] = field(default_factory=Counter)
