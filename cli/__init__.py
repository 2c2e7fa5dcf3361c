"""The command line: one file a command."""

import typer

from nvfp4.cli import bench, convert, demo, info, inspect, tune, warmup

app = typer.Typer(
    help="NVFP4 operators: what runs here, a demo on a real model, benchmarks, checkpoints.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
)
app.command()(info.info)
app.command()(demo.demo)
app.command()(bench.bench)
app.command()(warmup.warmup)
app.command()(tune.tune)
app.command()(convert.convert)
app.command()(inspect.inspect)

__all__ = ["app"]
