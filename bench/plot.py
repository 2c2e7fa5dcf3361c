"""python -m nvfp4.bench.plot RESULTS.json: a plot of a benchmark's ratios, beside its file."""

import json
from math import prod
from pathlib import Path
from typing import Annotated

import typer


def main(results: Annotated[Path, typer.Argument(help="A file written by bench --out.")]) -> None:
    """Plot the peers' times / our time by the number of tokens.

    Each weight shape is a point. The line goes through the geometric means.
    """
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    found = json.loads(results.read_text())
    rows = [row for row in found["rows"] if row["op"] in ("linear", "moe")]
    ops = list(dict.fromkeys(row["op"] for row in rows))
    figure, axes = pyplot.subplots(1, len(ops), figsize=(7 * len(ops), 5), squeeze=False)
    for axis, op in zip(axes[0], ops, strict=True):
        of_op = [row for row in rows if row["op"] == op]
        tokens = [_tokens(row["shape"]) for row in of_op]
        for peer in dict.fromkeys(peer for row in of_op for peer in row["ratios"]):
            points: dict[int, list[float]] = {}
            for count, row in zip(tokens, of_op, strict=True):
                if peer in row["ratios"]:
                    points.setdefault(count, []).append(row["ratios"][peer])
            means = {count: prod(all_) ** (1 / len(all_)) for count, all_ in points.items()}
            (line,) = axis.plot(list(means), list(means.values()), marker="o", label=peer)
            for count, all_ in points.items():
                axis.scatter([count] * len(all_), all_, s=8, color=line.get_color(), alpha=0.5)
        axis.axhline(1, color="black", linewidth=0.8)
        axis.set(xscale="log", yscale="log", xlabel="tokens", title=f"nvfp4::{op}")
        axis.set_ylabel("times as fast as")
        axis.set_xticks(sorted(set(tokens)), [str(count) for count in sorted(set(tokens))])
        axis.yaxis.set_major_formatter("{x:g}")
        axis.yaxis.set_minor_formatter("{x:g}")
        axis.legend()
    machine = found["machine"]
    figure.suptitle(f"{machine.get('gpu', machine['cpu'])}, commit {machine['commit']}")
    figure.tight_layout()
    figure.savefig(results.with_suffix(".png"), dpi=110)


def _tokens(shape: str) -> int:
    return int(shape.split(":")[0].split("x")[0])


if __name__ == "__main__":
    typer.run(main)
