"""Tables of what was executed where, made from recorded results.

    python -m nvfp4.bench.verification  # rewrites the tables in docs/verification.md and README.md

A cell is "hardware (commit, GPU)", "emulated (CI)", or "refused, because" and the backend's reason.
"""

import json
import re
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from nvfp4.backends.emulation import ARCHITECTURES
from nvfp4.dispatch import BACKENDS
from nvfp4.dispatch.explain import STAGES

ROOT = Path(__file__).resolve().parents[1]
RESULTS = ROOT / "bench" / "results"
MATRIX = RESULTS / "emulated_matrix.json"

GPUS = {"NVIDIA H200": ("H200", 90)}
"""The GPUs that results were recorded on: a short name, and the architecture."""

MACHINES = {
    80: "A100",
    86: "RTX 30, A10, A40",
    89: "RTX 40, L4, L40S",
    90: "H100, H200",
    100: "B200",
    103: "B300",
    110: "Jetson Thor",
    120: "RTX 50, RTX PRO 6000",
    121: "DGX Spark",
}

Cells = dict[tuple[str, str, int], str]
"""Texts by backend, op and architecture."""


def hardware() -> Cells:
    """What GPUs ran: benchmarks, which check each result before they time it, and every form."""
    cells: Cells = {}
    for path in sorted(RESULTS.glob("h200_*.json")):
        found = json.loads(path.read_text())
        if not isinstance(found, dict) or "rows" not in found:
            continue
        machine = found["machine"]
        gpu, sm = GPUS[machine["gpu"]]
        for row in (row for row in found["rows"] if not row.get("failed") and "refused" not in row):
            stages = (row["op"],) if row["op"] == "linear" else STAGES[row["op"]]
            for op in stages:
                cell = f"hardware ({machine['commit']}, {gpu})"
                cells.setdefault((row["backend"], op, sm), cell)
    return cells


def runs() -> list[dict[str, Any]]:
    return json.loads(MATRIX.read_text())["runs"]


def emulated(release: str) -> Cells:
    """What the emulator ran with a release of Triton."""
    return {
        (run["backend"], run["op"], run["sm"]): outcome(run)
        for run in runs()
        if run["triton"] == release
    }


def outcome(run: dict[str, Any]) -> str:
    if "refused" in run:
        return f"refused, because it {short(run['refused'])}"
    return f"failed: {', '.join(run['failed'])}" if run["failed"] else "emulated (CI)"


def short(reasons: str) -> str:
    """A reason without what the row or the column says: what was got, and that a CPU emulates."""
    first = reasons.split("; ")[0]
    return re.sub(r"( on emulated sm_\d+)?(, or the CPU to emulate it)?, got .*", "", first)


def releases() -> list[str]:
    return sorted({run["triton"] for run in runs()}, key=lambda r: [*map(int, r.split("."))])


def cell(cells: Cells, backend: str, op: str, sm: int) -> str:
    return cells.get((backend, op, sm), "")


def by_op(cells: Cells, backend: str, ops: Iterable[str]) -> str:
    """A table of a backend: a row an op, a column for architectures that are alike."""
    ops = tuple(ops)

    def column(sm: int) -> tuple[str, ...]:
        return tuple(cell(cells, backend, op, sm) for op in ops)

    groups: dict[tuple[str, ...], list[str]] = {}
    for sm in ARCHITECTURES:
        if any(column(sm)):
            groups.setdefault(column(sm), []).append(f"sm_{sm}")
    heads = map(", ".join, groups.values())
    rows = [[f"`{op}`", *(texts[i] for texts in groups)] for i, op in enumerate(ops)]
    return table([f"`{backend}`", *heads], rows)


def by_release() -> str:
    """A table of Triton's releases: what all ops of an architecture came to."""
    rows = []
    for sm in ARCHITECTURES:
        row = [f"sm_{sm}"]
        for release in releases():
            found = emulated(release).items()
            row.append(summary([x for (b, _, at), x in found if (b, at) == ("triton", sm)]))
        rows.append(row)
    return table(["", *(f"Triton {release}" for release in releases())], rows)


def summary(texts: list[str]) -> str:
    """One text for the ops of an architecture, of which some may leave their work to others."""
    failed = [text for text in texts if text.startswith("failed")]
    refused = [text for text in texts if text.startswith("refused")]
    if failed:
        return "; ".join(failed)
    if texts and len(refused) == len(texts):
        return refused[0]
    return "emulated" if texts else "not recorded"


def by_gpu(cells: Cells) -> str:
    """The front page's table: a row an architecture, a column a backend."""
    rows = []
    for sm in ARCHITECTURES:
        row = [f"{MACHINES[sm]} (sm_{sm})"]
        for backend in ("triton", "cutedsl"):
            texts = [text for (b, _, at), text in cells.items() if (b, at) == (backend, sm)]
            ran = [text for text in texts if text.startswith("hardware")]
            gpus = sorted({text.rsplit(", ")[-1].rstrip(")") for text in ran})
            most = f"**run on {', '.join(gpus)}** ({len(ran)} of {len(texts)} ops), else "
            row.append((most if ran else "") + summary(texts))
        rows.append(row)
    return table(["GPU", "`triton`", "`cutedsl`"], rows)


def table(head: list[str], rows: list[list[str]]) -> str:
    lines = [head, ["---"] * len(head), *rows]
    return "".join(f"| {' | '.join(line)} |\n" for line in lines)


def current() -> Cells:
    """All cells, of the newest Triton that was recorded; hardware counts more than emulation."""
    return emulated(releases()[-1]) | hardware()


def tables() -> dict[tuple[str, str], str]:
    """Each page's tables by name."""
    cells = current()
    ops = {backend.name: backend.ops for backend in BACKENDS}
    both = "\n".join(by_op(cells, name, ops[name]) for name in ("triton", "cutedsl"))
    return {
        ("docs/verification.md", "ops"): both,
        ("docs/verification.md", "releases"): by_release(),
        ("README.md", "gpus"): by_gpu(cells),
    }


def filled(text: str, name: str, made: str) -> str:
    """A page's text with a table in its place, between two comments."""
    begin, end = f"<!-- table: {name} -->\n", "<!-- end of table -->"
    start = text.index(begin) + len(begin)
    return text[:start] + made + text[text.index(end, start) :]


def main() -> None:
    for (page, name), made in tables().items():
        path = ROOT / page
        path.write_text(filled(path.read_text(), name, made))


if __name__ == "__main__":
    main()
