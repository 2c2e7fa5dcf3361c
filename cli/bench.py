"""python -m nvfp4 bench: the ops' times beside ceilings and peers; or checkpoints' accuracy."""

import json
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.console import Console
from rich.markdown import Markdown

from nvfp4.cli.errors import check_text, needs_package, user_errors
from nvfp4.cli.progress import steps

if TYPE_CHECKING:
    from nvfp4.bench.run import Results


def bench(
    model: Annotated[
        Path | None, typer.Argument(help="With --accuracy: a Hugging Face folder or a GGUF file.")
    ] = None,
    text: Annotated[
        Path | None, typer.Argument(help="With --accuracy: what perplexity is measured on.")
    ] = None,
    accuracy: Annotated[
        bool, typer.Option("--accuracy", help="Compare NVFP4 checkpoints of MODEL with MODEL.")
    ] = False,
    methods: Annotated[
        str, typer.Option(help="With --accuracy: the methods of convert to measure.")
    ] = "rtn,mse",
    calibration: Annotated[
        Path | None,
        typer.Option("--calibrate", help="With --accuracy: a text for convert, apart from TEXT."),
    ] = None,
    checkpoint: Annotated[
        list[Path] | None,
        typer.Option(
            help="With --accuracy: another NVFP4 checkpoint of MODEL; may be given often."
        ),
    ] = None,
    max_tokens: Annotated[
        int, typer.Option(min=2, help="With --accuracy: how much of TEXT to use.")
    ] = 8192,
    calibrate_tokens: Annotated[
        int, typer.Option(min=1, help="With --accuracy: how much of the other text to use.")
    ] = 4096,
    scale_rule: Annotated[
        str,
        typer.Option(
            help="With --accuracy: how block scales of activations are chosen, amax_over_six or "
            "four_over_six."
        ),
    ] = "amax_over_six",
    op: Annotated[str, typer.Option(help="One op; default all.")] = "",
    rounds: Annotated[int, typer.Option(min=1, help="Rounds of each measurement.")] = 15,
    out: Annotated[Path | None, typer.Option(help="A folder for NAME.json and NAME.md.")] = None,
    name: Annotated[str, typer.Option(help="The results' name in it.")] = "ops",
    commit: Annotated[str, typer.Option(help="The commit measured; default: asked of git.")] = "",
    as_json: Annotated[bool, typer.Option("--json", help="Machine-readable, on stdout.")] = False,
) -> None:
    """Check every op, then time it beside its peers and this machine's ceilings.

    On a CPU the shapes are tiny, and the times say nothing about a GPU.

    With --accuracy: measure perplexity, the divergence from MODEL and agreement with it.
    """
    if accuracy:
        _accuracy(
            model, text, calibration, methods, checkpoint, max_tokens, calibrate_tokens,
            scale_rule, out, name, commit, as_json,
        )  # fmt: skip
        return
    with user_errors(), steps() as step:
        needs_package("bench", "triton")
        from nvfp4.bench.run import run

        def keep(results: "Results") -> None:
            if out is not None:
                results.write(out, name)

        results = run(op, rounds, commit, step, keep)
    _print(results, as_json)


def _accuracy(
    model: Path | None,
    text: Path | None,
    calibration: Path | None,
    methods: str,
    checkpoints: list[Path] | None,
    max_tokens: int,
    calibrate_tokens: int,
    scale_rule: str,
    out: Path | None,
    name: str,
    commit: str,
    as_json: bool,
) -> None:
    with user_errors(), steps() as step:
        if model is None or text is None:
            got = "no MODEL" if model is None else "no TEXT"
            raise ValueError(f"bench --accuracy: needs MODEL and TEXT, got {got}")
        check_text("TEXT", text)
        check_text("--calibrate", calibration)
        from nvfp4.bench.accuracy import run as benchmark

        plan = benchmark.Plan(
            model,
            text,
            calibration,
            tuple(filter(None, methods.split(","))),
            tuple(checkpoints or ()),
            tokens=max_tokens,
            calibration_tokens=calibrate_tokens,
            scale_rule=scale_rule,
        )

        def keep(results: benchmark.Results) -> None:
            if out is not None:
                results.write(out, name)

        results = benchmark.run(plan, commit, step, keep)
    _print(results, as_json)


def _print(results: Any, as_json: bool) -> None:
    if as_json:
        print(json.dumps(results.as_dict(), indent=1))
        return
    console = Console()
    console.print(
        Markdown(results.markdown()) if console.is_terminal else results.markdown(),
        soft_wrap=True,
    )
