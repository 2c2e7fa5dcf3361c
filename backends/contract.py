"""What a backend is, and the facts it is asked about."""

import functools
from collections.abc import Callable
from dataclasses import dataclass
from importlib import import_module
from typing import Any, NamedTuple

import torch


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
    them.
    """

    op: str
    target: Target


@dataclass(frozen=True)
class Backend:
    """One way to run the ops.

    `ops` are those it has; op `x` is function `x` of module `nvfp4.backends.<name>.x`, imported on
    first use. `needs` lists everything that stands in a problem's way, each "needs X, got Y".
    `only_by_name` says why a problem that this backend can run is not given to it unasked.
    """

    name: str
    ops: tuple[str, ...]
    needs: Callable[[Problem], list[str]]
    only_by_name: Callable[[Problem], str]

    def reasons(self, problem: Problem) -> list[str]:
        """Why this backend cannot run the problem; all the reasons, none if it can."""
        kernels = ", ".join(self.ops) or "none yet"
        missing = [] if problem.op in self.ops else [f"needs a kernel for this op, has {kernels}"]
        return missing + self.needs(problem)

    def launcher(self, op: str) -> Callable[..., Any]:
        return getattr(import_module(f"nvfp4.backends.{self.name}.{op}"), op)
