"""What a backend is."""

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from importlib import import_module
from typing import Any, NamedTuple

from nvfp4.backends.problem import Problem
from nvfp4.backends.workload import Workload
from nvfp4.calls.call import Launcher


class Compilation(NamedTuple):
    """Kernels being compiled ahead."""

    kernels: int
    """How many there are."""
    outcomes: Iterator[tuple[str, str]]
    """Each kernel's name as it is done, with "cached", "compiled", or "failed: " and the reason."""


CompileAhead = Callable[[Iterable[Workload], str, int], Compilation]
"""Compiles what workloads need, for an architecture such as "sm_100a", in a number of processes (0:
one per CPU).
"""


@dataclass(frozen=True)
class Backend:
    """One way to run the ops.

    name: its folder under backends/.
    ops: what it has. The launcher of op `x` is function `x` of module `nvfp4.backends.<name>.x`,
        imported on first use.
    needs: lists everything that stands in a problem's way, each "needs X, got Y".
    only_by_name: says why a problem that it can run is not given to it unasked; "" if it is.
    compile_ahead: fills a cache on disk, for a backend that keeps one.
    describe: says what it would run for mm's M, N, K.
    replays: whether its launchers only launch, and write each launch down (recording.py).
    """

    name: str
    ops: tuple[str, ...]
    needs: Callable[[Problem], list[str]]
    only_by_name: Callable[[Problem], str]
    compile_ahead: CompileAhead | None = None
    describe: Callable[[int, int, int], str] | None = None
    replays: bool = False

    def reasons(self, problem: Problem) -> list[str]:
        """All the reasons why this backend cannot run the problem; none if it can."""
        kernels = ", ".join(self.ops) or "none yet"
        missing = [] if problem.op in self.ops else [f"needs a kernel for this op, has {kernels}"]
        return missing + self.needs(problem)

    def launcher(self, op: str) -> Launcher[Any, Any]:
        """The function that runs prepared calls of an op (nvfp4.calls.takes)."""
        return getattr(import_module(f"nvfp4.backends.{self.name}.{op}"), op)
