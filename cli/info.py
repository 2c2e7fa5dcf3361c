"""python -m nvfp4 info: this machine, and which backend runs each op on it."""

import json
import platform
from collections import defaultdict
from importlib.metadata import PackageNotFoundError, version
from typing import Annotated, Any

import torch
import typer
from rich.console import Console
from rich.table import Table

from nvfp4.backends.target import target_of
from nvfp4.cli.emulating import EMULATE, emulating
from nvfp4.cli.errors import user_errors
from nvfp4.dispatch import BACKENDS
from nvfp4.dispatch.explain import STAGES, explain
from nvfp4.version import VERSION

PACKAGES = ("torch", "triton", "nvidia-cutlass-dsl")


def _plans(m: int, n: int, k: int) -> dict[str, str]:
    """What each backend with a `describe` would run for out [m, n] with K = k."""
    if min(m, n) < 1 or k < 16 or k % 16:
        need = "M and N positive and K a positive multiple of 16"
        raise ValueError(f"--problem needs {need}, got {m} {n} {k}")
    return {b.name: b.describe(m, n, k) for b in BACKENDS if b.describe is not None}


def _installed(package: str) -> str:
    try:
        return version(package)
    except PackageNotFoundError:
        return "not installed"


def _facts() -> dict[str, Any]:
    devices = ["cpu", *(f"cuda:{index}" for index in range(torch.cuda.device_count()))]
    return {
        "nvfp4": VERSION,
        "python": platform.python_version(),
        "packages": {package: _installed(package) for package in PACKAGES},
        "devices": {device: _device(torch.device(device)) for device in devices},
    }


def _device(device: torch.device) -> dict[str, Any]:
    target = target_of(device)
    name = torch.cuda.get_device_name(device) if device.type == "cuda" else platform.machine()
    found = {op: explain(op, device) for op in STAGES}
    verdicts = {
        backend.name: {
            stage.op: str(verdict)
            for explanation in found.values()
            for stage in explanation.stages
            for verdict in stage.verdicts
            if verdict.backend == backend.name
        }
        for backend in BACKENDS
    }
    return {
        "name": name,
        "target": str(target),
        "runs": {op: explanation.backend for op, explanation in found.items()},
        "backends": verdicts,
    }


def info(
    as_json: Annotated[bool, typer.Option("--json", help="Machine-readable.")] = False,
    emulate: Annotated[str, typer.Option(metavar="ARCH", help=EMULATE)] = "",
    problem: Annotated[
        tuple[int, int, int] | None,
        typer.Option(metavar="M N K", help="What each backend's mm would run, and how long."),
    ] = None,
) -> None:
    """Say what this machine has, and which backend runs each op on it, and why."""
    with user_errors(), emulating(emulate):
        facts = _facts()
        if problem is not None:
            facts["problem"] = _plans(*problem)
    if as_json:
        print(json.dumps(facts, indent=2))
        return
    console = Console(soft_wrap=True, highlight=False)
    packages = ", ".join(f"{name} {found}" for name, found in facts["packages"].items())
    console.print(f"nvfp4 {facts['nvfp4']}, Python {facts['python']}, {packages}")
    for device, about in facts["devices"].items():
        _print_device(device, about, console)
    for backend, plan in facts.get("problem", {}).items():
        console.print(f"  mm M N K = {problem} on {backend}: {plan}")


def _print_device(device: str, about: dict[str, Any], console: Console) -> None:
    """Print a table with a word for each verdict, and below it every backend's reasons in full."""
    table = Table(
        "op", "runs on", *about["backends"], title=f"{device}: {about['name']}, {about['target']}"
    )
    for op, runs in about["runs"].items():
        table.add_row(
            op,
            runs,
            *(
                _word(
                    [
                        said[stage]
                        for stage in STAGES[op]
                        if len(STAGES[op]) == 1 or _has(said[stage])
                    ]
                )
                for said in about["backends"].values()
            ),
        )
    console.print(table)
    for backend, said in about["backends"].items():
        reasons: dict[str, list[str]] = defaultdict(list)
        for op, verdict in said.items():
            for reason in verdict.split("; "):
                reasons[reason].append(op)
        for reason, ops in reasons.items():
            console.print(
                f"  {backend}: {reason}" + ("" if len(ops) == len(said) else f" ({', '.join(ops)})")
            )


def _has(verdict: str) -> bool:
    """Whether the backend has a kernel at all; if not, other backends run the stage."""
    return not verdict.startswith("needs a kernel for this op")


def _word(verdicts: list[str]) -> str:
    """Sum up the verdicts on an op's stages in a word."""
    if all(verdict == "ok" for verdict in verdicts):
        return "ok"
    able = all(verdict == "ok" or verdict.startswith("by name") for verdict in verdicts)
    return "by name" if able else "no"
