"""python -m nvfp4 bench: the ops against this machine's ceilings and against peers."""

import json
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from rich.console import Console
from rich.markdown import Markdown

from nvfp4.cli.errors import needs_package, user_errors
from nvfp4.cli.progress import steps

if TYPE_CHECKING:
    from nvfp4.bench.run import Results


def bench(
    op: Annotated[str, typer.Option(help="One op; default all.")] = "",
    rounds: Annotated[int, typer.Option(min=1, help="Rounds of each measurement.")] = 15,
    out: Annotated[Path | None, typer.Option(help="A folder for NAME.json and NAME.md.")] = None,
    name: Annotated[str, typer.Option(help="The results' name in it.")] = "ops",
    commit: Annotated[str, typer.Option(help="The commit measured; default: asked of git.")] = "",
    as_json: Annotated[bool, typer.Option("--json", help="Machine-readable, on stdout.")] = False,
) -> None:
    """Check every op, then time it beside its peers and this machine's ceilings.

    On a CPU the shapes are tiny, and the times say nothing about a GPU.
    """
    with user_errors(), steps() as step:
        needs_package("bench", "triton")
        from nvfp4.bench.run import run

        def keep(results: "Results") -> None:
            if out is not None:
                results.write(out, name)

        results = run(op, rounds, commit, step, keep)
    if as_json:
        print(json.dumps(results.as_dict(), indent=1))
    else:
        console = Console()
        console.print(
            Markdown(results.markdown()) if console.is_terminal else results.markdown(),
            soft_wrap=True,
        )
