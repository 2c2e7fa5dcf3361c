"""python -m nvfp4 demo: a real language model on torch.ops.nvfp4.linear, against itself in bf16."""

import json
from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console
from rich.table import Table

from nvfp4.cli.emulating import EMULATE, emulating
from nvfp4.cli.errors import check_text, user_errors, write_text
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
    emulate: Annotated[str, typer.Option(metavar="ARCH", help=EMULATE)] = "",
    out: Annotated[Path | None, typer.Option(help="A file for the result, in JSON.")] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Machine-readable, on stdout.")] = False,
) -> None:
    """Run a language model with every linear layer in NVFP4 (W4A4), and compare it with bf16."""
    if emulate and not backend:
        backend = "triton"  # what is emulated runs by name only
    with user_errors(), emulating(emulate), steps() as step:
        check_text("--text", text)
        report = run(model, text, max_tokens, new_tokens, backend, step)
        as_text = json.dumps(report.as_dict(), indent=2)
        if out is not None:
            write_text(out, as_text + "\n")
    if as_json:
        print(as_text)
    else:
        _print(report, Console())


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
