"""The first backend with nothing in its way runs; one asked for by name runs or raises.

An exception never means "unsupported": a backend says beforehand what it needs.
"""

import functools
from typing import Any, NamedTuple

import torch
from torch import Tensor

from nvfp4.backends import environment
from nvfp4.backends.backend import Backend
from nvfp4.backends.problem import Problem
from nvfp4.backends.recording import RECORDING
from nvfp4.backends.target import Target, target_of
from nvfp4.calls.call import Call, Launcher, Out, op_of
from nvfp4.dispatch.registry import BACKENDS


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
    """The backend asked for: by the call, else by the environment, else none ("").

    Raises:
        ValueError: the environment names one that there is not.
    """
    if backend or not (name := environment.backend()):
        return backend
    if name not in (known := [b.name for b in BACKENDS]):
        need = f"one of {', '.join(known)}"
        raise ValueError(
            f"nvfp4: the environment variable {environment.BACKEND} needs {need}, got {name!r}"
        )
    return name


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


def fill(call: Call[Out], out: Out, stage: bool = False, op: str = "") -> None:
    """Let a backend fill `out`, which may have no elements.

    call: names a backend in its field `backend`, or leaves the choice with "".
    stage: the call is a stage of another op, and `backend` was given for that one; it need not be
        something that the backend has. An op named to a backend runs there or raises.
    op: the launcher asked for, where the call's own op is not meant.
    """
    first = _first(out)
    launch = launcher(op or op_of(type(call)), first.device, call.backend, stage)
    if first.numel():
        launch(*call.prepared(out))


def fuse(
    call: Call[Out],
    out: Out,
    stage: str,
    intermediate: int = 0,
    activation: str = "",
    bias: bool = False,
) -> bool:
    """Fill `out` in one kernel if whoever runs op `stage` has one for this call.

    intermediate, activation, bias: what the problem says of an MLP's first layer.
    False: nothing was done, the stages have to be run one by one.
    """
    first = _first(out)
    problem = Problem(op_of(type(call)), target_of(first.device), intermediate, activation, bias)
    found = _fused_launcher(problem, stage, requested(call.backend))
    if found is None:
        return False
    if first.numel():
        _noted(*found)(*call.prepared(out))
    return True


def launcher(
    op: str, device: torch.device, backend: str = "", stage: bool = False
) -> Launcher[Any, Any]:
    """The function that runs `op` on tensors of `device`; `backend` names one, "" chooses."""
    strict = bool(backend) and not stage
    return _noted(*_launcher(op, target_of(device), requested(backend), strict))


@functools.cache
def _launcher(op: str, target: Target, name: str, strict: bool) -> tuple[str, Launcher[Any, Any]]:
    chosen = choose(Problem(op, target), name, strict)
    return chosen.name, chosen.launcher(op)


@functools.cache
def _fused_launcher(
    problem: Problem, stage: str, name: str
) -> tuple[str, Launcher[Any, Any]] | None:
    chosen = choose(Problem(stage, problem.target), name, strict=False)
    unable = chosen.reasons(problem)
    return None if unable else (chosen.name, chosen.launcher(problem.op))


def _first(out: Any) -> Tensor:
    """The output that says where a call runs, and whether there is anything to compute."""
    return out if isinstance(out, Tensor) else out[0]


def _noted(backend: str, launch: Launcher[Any, Any]) -> Launcher[Any, Any]:
    """Write the backend down, where calls are recorded."""
    recording = RECORDING.get()
    if recording is not None:
        recording.backends.add(backend)
    return launch
