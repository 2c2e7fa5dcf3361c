"""python -m nvfp4.bench.goals RESULTS.json: what `bench --op linear` gave, beside what it is to."""

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
"""By tokens: how many times as fast as a peer, geometric means over the weight shapes."""


def _mean(rows: list[dict[str, Any]], peer: str) -> float:
    """Of ours to a peer's speed; of "weight-only …", of ours with activations in bf16."""
    own, _, name = peer.rpartition(" ")
    ratios = [row["ratios"] for row in rows]
    over = [r[name] / (r["weight-only"] if own else 1) for r in ratios]
    return prod(over) ** (1 / len(over))


def table(found: dict[str, Any]) -> str:
    """Markdown; what is not reached is red."""
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
            got = _mean(rows, peer)
            cells += [f"{'🟢' if got >= goal else '🔴'} {got:.2f}", f"{goal:.2f}"]
        cells += [f"{_mean(rows, f'weight-only {peer}'):.2f}" for peer in goals]
        lines.append("| " + " | ".join(cells) + " |")
    machine = found["machine"]
    facts = (machine["gpu"], *(f"{name} {machine[name]}" for name in ("torch", "triton", "commit")))
    return "\n".join(lines) + f"\n\nGeometric means over the shapes; {', '.join(facts)}.\n"


def main(results: Annotated[Path, typer.Argument(help="What bench --out has written.")]) -> None:
    """Write RESULTS_goals.md beside the results."""
    text = table(json.loads(results.read_text()))
    results.with_name(f"{results.stem}_goals.md").write_text(text)
    print(text)


if __name__ == "__main__":
    typer.run(main)
