"""python -m nvfp4.bench.goals RESULTS.json: the results of `bench --op linear`, beside goals."""

import json
from math import prod
from pathlib import Path
from typing import Annotated, Any

import typer

GOALS = {
    1: {"humming": 1.25, "bf16": 1.75},
    8: {"humming": 1.25, "bf16": 1.75},
    16: {"humming": 1.2, "bf16": 1.5},
    64: {"humming": 1.1, "bf16": 1.05},
    256: {"humming": 1.1, "bf16": 0.75},
    1024: {"humming": 1.05, "bf16": 0.85},
    4096: {"humming": 1.1, "bf16": 0.95},
    8192: {"humming": 1.1, "bf16": 0.95},
}
"""The goals by tokens: peer's time / our time, geometric means over the weight shapes."""

SLOWEST = {"": 0.95, "weight-only ": 1.0}
"""The goals of the slowest cell: humming's time / our time, in W4A4 ("") and in W4A16."""

WEIGHTS = ("16384x7168", 8, 3.0)
"""A weight shape, the most tokens, and the goal in TB/s of weights."""


def _ratios(rows: list[dict[str, Any]], peer: str) -> list[float]:
    """The peer's time / our time of each row; empty if the peer did not run.

    With "weight-only " before the peer's name, our time is that of W4A16.
    """
    own, _, name = peer.rpartition(" ")
    ratios = [row["ratios"] for row in rows]
    if any(name not in r for r in ratios):
        return []
    return [r[name] / (r["weight-only"] if own else 1) for r in ratios]


def _mean(rows: list[dict[str, Any]], peer: str) -> float | None:
    over = _ratios(rows, peer)
    return prod(over) ** (1 / len(over)) if over else None


def _terabytes(row: dict[str, Any]) -> float:
    """Compute the TB/s of weights: half a byte a weight, and a scale byte for 16."""
    _, n, k = map(int, row["shape"].split("x"))
    return n * k * 9 / 16 / row["microseconds"] / 1e6


def _cell(got: float | None, goal: float | None = None) -> str:
    if got is None:
        return "not run"
    mark = "" if goal is None else "🟢 " if got >= goal else "🔴 "
    return f"{mark}{got:.2f}"


def table(found: dict[str, Any]) -> str:
    """Make a Markdown table, in which goals that are not reached are red."""
    lines = [
        "| tokens | vs humming | goal | vs bf16 | goal | weight-only vs humming | vs bf16 |",
        "| --- " * 7 + "|",
    ]
    for tokens, goals in GOALS.items():
        rows = [row for row in found["rows"] if row["shape"].startswith(f"{tokens}x")]
        if not rows:
            continue
        cells = [str(tokens)]
        for peer, goal in goals.items():
            cells += [_cell(_mean(rows, peer), goal), f"{goal:.2f}"]
        cells += [_cell(_mean(rows, f"weight-only {peer}")) for peer in goals]
        lines.append("| " + " | ".join(cells) + " |")
    machine = found["machine"]
    facts = (machine["gpu"], *(f"{name} {machine[name]}" for name in ("torch", "triton", "commit")))
    lines += ["", f"Geometric means over the shapes; {', '.join(facts)}.", ""]
    for mode, goal in SLOWEST.items():
        slowest = min(_ratios(found["rows"], f"{mode}humming"), default=None)
        lines.append(
            f"- the slowest cell {mode}vs humming: {_cell(slowest, goal)} (goal {goal:.2f})"
        )
    shape, most, goal = WEIGHTS
    for row in found["rows"]:
        tokens, _, weights = row["shape"].partition("x")
        if weights == shape and int(tokens) <= most:
            cell = _cell(_terabytes(row), goal)
            lines.append(f"- weights of {shape} at M = {tokens}: {cell} TB/s (goal {goal:.1f})")
    return "\n".join(lines) + "\n"


def main(results: Annotated[Path, typer.Argument(help="A file written by bench --out.")]) -> None:
    """Compare results with the goals, and write RESULTS_goals.md beside them."""
    text = table(json.loads(results.read_text()))
    results.with_name(f"{results.stem}_goals.md").write_text(text)
    print(text)


if __name__ == "__main__":
    typer.run(main)
