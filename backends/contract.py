"""What a backend is, and the facts it is asked about."""

import functools
import re
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass
from importlib import import_module
from typing import Any, NamedTuple

import torch
from torch import Tensor

from nvfp4.calls.call import Launcher


class Target(NamedTuple):
    """Where the tensors are: a torch device type, and an NVIDIA GPU's architecture (90 for sm_90,
    else 0).
    """

    device: str
    sm: int = 0

    def __str__(self) -> str:
        return f"{self.device} sm_{self.sm}" if self.sm else self.device


@functools.cache
def target_of(device: torch.device) -> Target:
    if device.type != "cuda" or torch.version.hip:
        return Target(device.type)
    major, minor = torch.cuda.get_device_capability(device)
    return Target("cuda", 10 * major + minor)


class Problem(NamedTuple):
    """What decides who can run a call: deciding facts only, since a selection is cached under
    them. `intermediate`: of an op that makes a gated linear unit, the columns of its gate that
    share a factor: all I of them, or a segment; else 0.
    """

    op: str
    target: Target
    intermediate: int = 0


class Workload(NamedTuple):
    """Calls to prepare for: out [M, n] with K = k, for every M up to max_m.

    dtypes: of the outputs; bias: its dtype, or None for calls without. experts: 0 for mm and
    linear, else grouped_mm of so many, M the rows of all of them together; `glu` where the n = 2I
    columns go into a gated linear unit with a known global scale (grouped_mm_glu_quantize), dtypes
    then what gate and up are rounded to.
    """

    n: int
    k: int
    max_m: int
    dtypes: tuple[torch.dtype, ...] = (torch.bfloat16,)
    bias: torch.dtype | None = None
    experts: int = 0
    glu: bool = False

    def token_counts(self) -> list[int]:
        """Each M that may be run by another kernel: all of the few, then each row tile's."""
        many = range(129, self.max_m + 1, 128)
        return [*range(1, min(self.max_m, 128) + 1), *many, *{self.max_m} - set(many)]


class Compilation(NamedTuple):
    """Kernels being compiled ahead: how many, and each as it is done: its name, and "cached",
    "compiled" or "failed: " and why.
    """

    kernels: int
    outcomes: Iterator[tuple[str, str]]


class Recording:
    """A call that is written down: the backends that ran it, and what they launched, in order."""

    def __init__(self) -> None:
        self.backends: set[str] = set()
        self.launches: list[Any] = []


RECORDING: ContextVar[Recording | None] = ContextVar("nvfp4 recording", default=None)
"""Where a backend that can replay its launches writes them down."""


@contextmanager
def recorded() -> Iterator[Recording]:
    """The calls within are run, and written down."""
    recording = Recording()
    token = RECORDING.set(recording)
    try:
        yield recording
    finally:
        RECORDING.reset(token)


Replay = Callable[[list[int], torch.device], None]
"""Launches what was written down on tensors at other addresses, of the current device."""

CompileAhead = Callable[[Iterable[Workload], str, int], Compilation]
"""What workloads need, for an architecture such as "sm_100a", in so many processes (0: one per
CPU).
"""


def sm_of(arch: str) -> int:
    """100 of "sm_100a"."""
    found = re.fullmatch(r"sm_(\d+)[a-z]?", arch)
    if not found:
        raise ValueError(f"nvfp4: an architecture is sm_90a, sm_100a or the like, got {arch!r}")
    return int(found[1])


@dataclass(frozen=True)
class Backend:
    """One way to run the ops.

    `ops` are those it has; op `x` is function `x` of module `nvfp4.backends.<name>.x`, imported on
    first use. `needs` lists everything that stands in a problem's way, each "needs X, got Y".
    `only_by_name` says why a problem that this backend can run is not given to it unasked.
    `compile_ahead`, if it has one, fills a cache on disk; `describe` says what it would run for
    mm's M, N, K; `replay` makes a function of what it wrote down and the tensors of that call, or
    None if that cannot be.
    """

    name: str
    ops: tuple[str, ...]
    needs: Callable[[Problem], list[str]]
    only_by_name: Callable[[Problem], str]
    compile_ahead: CompileAhead | None = None
    describe: Callable[[int, int, int], str] | None = None
    replay: Callable[[Sequence[Any], Sequence[Tensor]], Replay | None] | None = None

    def reasons(self, problem: Problem) -> list[str]:
        """Why this backend cannot run the problem; all the reasons, none if it can."""
        kernels = ", ".join(self.ops) or "none yet"
        missing = [] if problem.op in self.ops else [f"needs a kernel for this op, has {kernels}"]
        return missing + self.needs(problem)

    def launcher(self, op: str) -> Launcher[Any, Any]:
        return getattr(import_module(f"nvfp4.backends.{self.name}.{op}"), op)
