"""The first backend with nothing in its way runs; one asked for by name runs or raises.

An exception never means "unsupported": a backend says beforehand what it needs.
"""

import functools
import os
from collections.abc import Callable
from typing import Any, NamedTuple

import torch

from nvfp4.backends.contract import RECORDING, Backend, Problem, target_of
from nvfp4.dispatch.registry import BACKENDS

ENVIRONMENT = "NVFP4_BACKEND"
"""Names a backend for every call that does not name one itself."""


class Verdict(NamedTuple):
    """What a backend says to a problem: `reasons` it cannot, or why it does so `only_by_name`."""

    backend: str
    reasons: tuple[str, ...]
    only_by_name: str

    def __str__(self) -> str:
        if self.reasons:
            return "; ".join(self.reasons)
        return f"by name only: {self.only_by_name}" if self.only_by_name else "ok"


def verdicts(problem: Problem) -> tuple[Verdict, ...]:
    return tuple(
        Verdict(b.name, tuple(b.reasons(problem)), b.only_by_name(problem)) for b in BACKENDS
    )


def requested(backend: str) -> str:
    """The backend asked for: by the call, else by the environment, else none ("")."""
    return backend or os.environ.get(ENVIRONMENT, "")


def choose(problem: Problem, name: str = "", strict: bool = True) -> Backend:
    """The backend that runs the problem; ValueError with all their reasons if there is none.

    Not strict, a backend asked for by name that has no kernel for this op at all leaves it to
    others: a backend of GEMMs alone can be asked for, and the rest is done as well as anywhere.
    """
    if not strict and any(b.name == name and problem.op not in b.ops for b in BACKENDS):
        name = ""
    said = verdicts(problem)
    for backend, verdict in zip(BACKENDS, said, strict=True):
        wanted = backend.name == name if name else not verdict.only_by_name
        if wanted and not verdict.reasons:
            return backend
    known = ", ".join(b.name for b in BACKENDS)
    asked = f"backend {name!r} cannot" if name else "no backend can"
    if name and name not in (b.name for b in BACKENDS):
        raise ValueError(f"nvfp4::{problem.op}: backend needs one of {known}, got {name!r}")
    lines = "".join(f"\n  {v.backend}: {v}" for v in said)
    raise ValueError(f"nvfp4::{problem.op}: {asked} run this on {problem.target}:{lines}")


def launcher(
    op: str, device: torch.device, backend: str = "", stage: bool = False
) -> Callable[..., Any]:
    """The function that runs `op` on tensors of `device`; `backend` names one, "" chooses.

    An op named to a backend runs there or raises; a `stage` of another op, and what the environment
    asks for, need not be something that the backend has.
    """
    return _noted(*_launcher(op, device, requested(backend), bool(backend) and not stage))


@functools.cache
def _launcher(
    op: str, device: torch.device, name: str, strict: bool
) -> tuple[str, Callable[..., Any]]:
    chosen = choose(Problem(op, target_of(device)), name, strict)
    return chosen.name, chosen.launcher(op)


def _noted(backend: str, launch: Callable[..., Any]) -> Callable[..., Any]:
    """A call that is written down is so with who runs it."""
    recording = RECORDING.get()
    if recording is not None:
        recording.backends.add(backend)
    return launch


def fused_launcher(
    op: str, stage: str, device: torch.device, backend: str = "", intermediate: int = 0
) -> Callable[..., Any] | None:
    """The function that runs `op` in one, if whoever runs its `stage` has one for this problem;
    None: the stages have to be run one by one.
    """
    found = _fused_launcher(op, stage, device, requested(backend), intermediate)
    return None if found is None else _noted(*found)


@functools.cache
def _fused_launcher(
    op: str, stage: str, device: torch.device, name: str, intermediate: int
) -> tuple[str, Callable[..., Any]] | None:
    target = target_of(device)
    chosen = choose(Problem(stage, target), name, strict=False)
    unable = chosen.reasons(Problem(op, target, intermediate))
    return None if unable else (chosen.name, chosen.launcher(op))
