"""The faults that the emulator looks for, and the exceptions that report them."""

from dataclasses import dataclass
from enum import Enum


class Kind(Enum):
    """A class of fault, which a test can expect by name."""

    LAUNCH = "launch"  # a launch that the hardware or the CUDA runtime refuses
    UNINITIALISED = "uninitialised"  # read of a register or memory never written
    EARLY_READ = "early read"  # data read without waiting for its writer
    OVERWRITE = "overwrite"  # data overwritten without waiting for its writer or its readers
    PROXY = "proxy fence"  # generic writes used by the async proxy without fence.proxy.async
    MBARRIER = "mbarrier"  # misuse of an mbarrier
    BARRIER = "barrier"  # misuse of bar.sync or barrier.cluster
    TMEM = "tensor memory"  # allocation and addressing of tensor memory
    CTA_GROUP = "cta_group"  # .cta_group::1 and ::2 mixed, or ::2 without a pair
    DESCRIPTOR = "descriptor"  # a tensor map or descriptor that is not valid
    MANY_LANES = "many lanes"  # a one-thread instruction issued by several
    PARTIAL_WARP = "partial warp"  # a whole-warp instruction issued by part of one
    OUT_OF_BOUNDS = "out of bounds"
    MISALIGNED = "misaligned"
    NOT_STARTED = "CTA not started"  # use of a CTA that is not known to run
    EXITED = "exited CTA"  # shared memory or barriers of a CTA that has ended
    UNFINISHED = "unfinished at exit"  # a kernel ended with asynchronous work or allocations left
    RACE = "race"  # two CTAs wrote a byte of global memory, or one read what the other wrote
    GRID_DEPENDENCY = "grid dependency"  # global memory used before griddepcontrol.wait
    UNWRITTEN = "unwritten output"


class Hazard(Exception):
    """A fault of the emulated program, found when `line` of its PTX ran."""

    def __init__(self, kind: Kind, message: str) -> None:
        self.kind = kind
        self.message = message
        self.line = 0
        self.text = ""
        self.where = ""
        super().__init__(message)

    def at(self, line: int, text: str, where: str) -> "Hazard":
        """Add the place to this hazard, unless it has one already."""
        if not self.line:
            self.line, self.text, self.where = line, text, where
        return self

    def __str__(self) -> str:
        place = f"\n  PTX line {self.line}: {self.text}\n  {self.where}" if self.line else ""
        return f"{self.kind.value}: {self.message}{place}"


class Deadlock(Exception):
    """No warp can run and no work is in flight; `waiting` has a line for each live warp."""

    def __init__(self, reason: str, waiting: list[str]) -> None:
        self.waiting = waiting
        super().__init__("\n  ".join([reason, *waiting]))


class Unsupported(Exception):
    """Something that the emulator does not know, and so refuses.

    It becomes an UnsupportedInstruction where the instruction is known.
    """


class UnsupportedInstruction(Unsupported):
    """An instruction, or a part of one, that the emulator does not know."""

    def __init__(self, line: int, text: str, why: str) -> None:
        self.line = line
        super().__init__(f"PTX line {line}: {text}\n  {why}")


@dataclass(frozen=True, slots=True)
class Event:
    """Something that reads or writes memory and that others may have to wait for."""

    what: str
    line: int
    where: str

    def __str__(self) -> str:
        return f"{self.what} (PTX line {self.line}, {self.where})"
