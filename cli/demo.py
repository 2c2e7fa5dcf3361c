"""python -m nvfp4 demo: a real language model on torch.ops.nvfp4.linear, against itself in bf16;
with --moe a mixture of experts at real models' sizes instead.
"""

import json
from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console
from rich.table import Table

from nvfp4.bench.moe_accuracy import run as mixture
from nvfp4.cli.errors import user_errors
from nvfp4.cli.progress import steps
from nvfp4.demo.run import Report, run


def demo(
    model: Annotated[
        Path | None,
        typer.Option(help="A GGUF file or a Hugging Face folder; default SmolLM2-135M."),
    ] = None,
    text: Annotated[
        Path | None, typer.Option(help="What perplexity is measured on; default a shipped text.")
    ] = None,
    max_tokens: Annotated[int, typer.Option(min=2, help="How much of the text to use.")] = 1024,
    new_tokens: Annotated[int, typer.Option(min=1, help="How much each model writes.")] = 40,
    backend: Annotated[str, typer.Option(help="A backend's name; default: chosen per op.")] = "",
    moe: Annotated[
        bool,
        typer.Option(
            "--moe", help="Instead: accuracy and times of mixture-of-experts layers at real sizes."
        ),
    ] = False,
    out: Annotated[Path | None, typer.Option(help="A file for the result, in JSON.")] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Machine-readable, on stdout.")] = False,
) -> None:
    """Run a language model with every linear layer in NVFP4, and compare it with bf16; or, with
    --moe, layers of mixtures of experts.
    """
    report: Report | mixture.Report
    with user_errors(), steps() as step:
        if moe:
            report = mixture.run(mixture.plan_here(), model, backend, step)
        else:
            report = run(model, text, max_tokens, new_tokens, backend, step)
        as_text = json.dumps(report.as_dict(), indent=2)
        if out is not None:
            out.write_text(as_text + "\n")
    if as_json:
        print(as_text)
    elif isinstance(report, Report):
        _print(report, Console())
    else:
        _print_mixture(report, Console())


def _print(report: Report, console: Console) -> None:
    table = Table(title=f"{report.model} on {report.device}, torch {report.torch}")
    table.add_column("")
    table.add_column("bf16", justify="right")
    table.add_column("NVFP4", justify="right")
    table.add_row(
        f"perplexity, {report.tokens} tokens",
        f"{report.perplexity_bf16:.3f}",
        f"{report.perplexity_nvfp4:.3f}",
    )
    table.add_row(
        f"weights of {report.layers} linear layers",
        f"{report.linear_bytes_bf16 / 1e6:.1f} MB",
        f"{report.linear_bytes_nvfp4 / 1e6:.1f} MB",
    )
    table.add_row("projections' cosine, median", "1", f"{report.cosine_median:.4f}")
    table.add_row(
        "projections' cosine, worst",
        "1",
        f"{report.cosine_worst:.4f} ({report.cosine_worst_projection})",
    )
    console.print(table)
    for name, written in (("bf16", report.continuation_bf16), ("NVFP4", report.continuation_nvfp4)):
        console.print(f"\n[bold]{name}[/bold]: {report.prompt}", end="")
        console.print(written, markup=False, highlight=False)
    console.print(f"\n{report.why}\n{report.seconds:.0f} s", markup=False, highlight=False)


def _print_mixture(report: mixture.Report, console: Console) -> None:
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
