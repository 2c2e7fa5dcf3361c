"""python -m nvfp4.bench.moe_accuracy: layers at real models' sizes, compared with bf16."""

import json
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console
from rich.table import Table

from nvfp4.bench.moe_accuracy.run import Report, plan_here, run
from nvfp4.spec.scale_rules import AMAX_OVER_SIX


def main(
    model: Annotated[
        Path | None,
        typer.Option(help="A GGUF file or a Hugging Face folder; default SmolLM2-135M."),
    ] = None,
    backend: Annotated[str, typer.Option(help="A backend's name; default: chosen per op.")] = "",
    scale_rule: Annotated[
        str, typer.Option(help="How activations' block scales are chosen.")
    ] = AMAX_OVER_SIX,
    out: Annotated[Path | None, typer.Option(help="A file for the result, in JSON.")] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Machine-readable, on stdout.")] = False,
) -> None:
    """Measure the accuracy of layers at real models' sizes, and the times of a mixture's stages."""
    report = run(replace(plan_here(), scale_rule=scale_rule), model, backend, _step)
    as_text = json.dumps(report.as_dict(), indent=2)
    if out is not None:
        out.write_text(as_text + "\n")
    if as_json:
        print(as_text)
    else:
        _print(report, Console())


def _step(title: str, total: int) -> Callable[[], None]:
    print(f"{title} ({total})", file=sys.stderr)
    return lambda: None


def _print(report: Report, console: Console) -> None:
    title = f"cosine similarity with bf16, on {report.device}, torch {report.torch}"
    table = Table("layer", "data", "scales", title=title)
    table.add_column("same weights", justify="right")
    table.add_column("original weights", justify="right")
    for row in report.accuracy:
        table.add_row(*row[:3], f"{row.same_weights:.4f}", f"{row.original_weights:.4f}")
    console.print(table)

    plan = report.plan
    title = f"time, {plan.experts} of {plan.experts_of} experts here, top {plan.top_k}"
    table = Table("layer", "stage", "runs on", title=title)
    for tokens in plan.timed:
        table.add_column(f"{tokens} tokens, us", justify="right")
    found = {(row.case, row.stage, row.tokens): row for row in report.stages}
    for case, stage in dict.fromkeys(key[:2] for key in found):
        rows = [found[case, stage, tokens] for tokens in plan.timed]
        times = (f"{row.microseconds:.0f}" for row in rows)
        table.add_row(case, stage, rows[0].backend, *times)
    console.print(table)
    console.print(f"real model: {report.real_model}", markup=False, highlight=False)
    console.print(f"\n{report.why}\n{report.seconds:.0f} s", markup=False, highlight=False)


if __name__ == "__main__":
    typer.run(main)
