"""The command line: one file a command."""

import typer

from nvfp4.cli import bench, demo, info, warmup

app = typer.Typer(
    help="NVFP4 operators: what runs here, a real model on them, and how fast they are.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
)
app.command()(info.info)
app.command()(demo.demo)
app.command()(bench.bench)
app.command()(warmup.warmup)

__all__ = ["app"]
