"""What the emulator watches for, and how it says so."""

from dataclasses import dataclass
from enum import Enum


class Kind(Enum):
    """The classes of fault. A test names the one it expects."""

    UNINITIALISED = "uninitialised"  # read of a register or memory never written
    EARLY_READ = "early read"  # data read without having waited for whoever writes it
    OVERWRITE = "overwrite"  # the same of data that is written
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
    GRID_DEPENDENCY = "grid dependency"  # global memory before griddepcontrol.wait
    UNWRITTEN = "unwritten output"


class Hazard(Exception):
    """A fault of the program under emulation, found where `line` of its PTX ran."""

    def __init__(self, kind: Kind, message: str) -> None:
        self.kind = kind
        self.message = message
        self.line = 0
        self.text = ""
        self.where = ""
        super().__init__(message)

    def at(self, line: int, text: str, where: str) -> "Hazard":
        """This hazard with its place; a place that is known already stays."""
        if not self.line:
            self.line, self.text, self.where = line, text, where
        return self

    def __str__(self) -> str:
        place = f"\n  PTX line {self.line}: {self.text}\n  {self.where}" if self.line else ""
        return f"{self.kind.value}: {self.message}{place}"


class Deadlock(Exception):
    """Nothing can run and nothing is in flight. `waiting` has a line for each live warp."""

    def __init__(self, reason: str, waiting: list[str]) -> None:
        self.waiting = waiting
        super().__init__("\n  ".join([reason, *waiting]))


class Unsupported(Exception):
    """What the emulator does not know, and so refuses; once its instruction is known, an
    UnsupportedInstruction.
    """


class UnsupportedInstruction(Unsupported):
    """An instruction, a modifier, or a value of one, that the emulator does not know."""

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
