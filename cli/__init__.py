"""The command line: one file a command."""

import signal
import threading
from typing import Annotated

import typer

from nvfp4.cli import bench, convert, demo, info, inspect, tune, warmup
from nvfp4.version import VERSION

app = typer.Typer(
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
)


def _version(asked: bool) -> None:
    if asked:
        print(f"nvfp4 {VERSION}")
        raise typer.Exit()


def _terminate(number: int, frame: object) -> None:
    raise SystemExit(128 + number)


@app.callback()
def main(
    version: Annotated[
        bool, typer.Option("--version", callback=_version, is_eager=True, help="Print the version.")
    ] = False,
) -> None:
    """NVFP4 operators: what runs here, a demo on a real model, benchmarks, checkpoints."""
    # SIGTERM then unwinds as an error does, so half-written folders are removed.
    if threading.current_thread() is threading.main_thread():
        signal.signal(signal.SIGTERM, _terminate)


app.command()(info.info)
app.command()(demo.demo)
app.command()(bench.bench)
app.command()(warmup.warmup)
app.command()(tune.tune)
app.command()(convert.convert)
app.command()(inspect.inspect)

__all__ = ["app"]
