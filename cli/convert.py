"""python -m nvfp4 convert: a model in floats to an NVFP4 checkpoint."""

import json
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from importlib.util import find_spec
from pathlib import Path
from typing import Annotated

import typer

from nvfp4.cli.errors import check_text, user_errors
from nvfp4.cli.progress import steps

REQUIREMENTS = ("safetensors", "transformers", "accelerate")


def convert(
    source: Annotated[
        Path,
        typer.Argument(
            metavar="SRC", help="A Hugging Face folder with safetensors, or a GGUF file."
        ),
    ],
    destination: Annotated[
        Path, typer.Argument(metavar="DST", help="The checkpoint's folder: new, or empty.")
    ],
    format: Annotated[
        str, typer.Option(help="modelopt or compressed-tensors; vLLM reads both.")
    ] = "modelopt",
    exclude: Annotated[
        list[str] | None,
        typer.Option(
            metavar="PATTERN",
            help="Layers to leave in floats: a wildcard ('*.o_proj') or a part of the name "
            "('self_attn'). May be given often.",
        ),
    ] = None,
    include: Annotated[
        list[str] | None,
        typer.Option(
            metavar="PATTERN",
            help="Layers to quantize that stay in floats otherwise: the head ('lm_head').",
        ),
    ] = None,
    text: Annotated[
        Path | None,
        typer.Option(
            "--calibrate",
            metavar="TEXT",
            help="Run the model over this text, and store its inputs' scales (W4A4); else the "
            "checkpoint says that its weights alone are quantized (W4A16).",
        ),
    ] = None,
    activation: Annotated[
        str | None,
        typer.Option(help="nvfp4 (W4A4) or bf16 (W4A16); default: W4A4 with --calibrate."),
    ] = None,
    method: Annotated[
        str,
        typer.Option(
            help="How weights are quantized: rtn, four_over_six, mse, gptq, awq or awq+gptq. The "
            "last three need --calibrate."
        ),
    ] = "rtn",
    max_tokens: Annotated[
        int, typer.Option("--calibrate-tokens", min=1, help="How much of the text to use.")
    ] = 4096,
    separate_scales: Annotated[
        bool,
        typer.Option(
            "--separate-scales",
            help="A global scale for each of q, k, v and of gate, up. Engines that take the "
            "largest for all of them read such a checkpoint wrong.",
        ),
    ] = False,
    shard_size: Annotated[str, typer.Option(help="The most bytes of a file.")] = "5GB",
    as_json: Annotated[bool, typer.Option("--json", help="Machine-readable, on stdout.")] = False,
) -> None:
    """Convert a language model in floats to an NVFP4 checkpoint.

    It goes tensor by tensor, so the largest one bounds the memory; --calibrate runs the whole
    model. DST appears when all of it is written.
    """
    with user_errors(), _plain_warnings(), steps() as step:
        if missing := [name for name in REQUIREMENTS if find_spec(name) is None]:
            raise ValueError(f"convert needs pip install 'nvfp4[checkpoints]', got no {missing[0]}")
        check_text("--calibrate", text)
        from nvfp4.checkpoints.convert import Options
        from nvfp4.checkpoints.convert import convert as run

        options = Options(
            format,
            tuple(exclude or ()),
            text,
            activation,
            method,
            max_tokens,
            separate_scales,
            shard_size,
            tuple(include or ()),
        )
        summary = run(source, destination, options, step)
    if as_json:
        print(json.dumps(summary.as_dict(), indent=2))
        return
    before, after = summary.bytes_before / 1e6, summary.bytes_after / 1e6
    inputs = "W4A4, input scales calibrated" if summary.calibrated else "W4A4, a scale per token"
    if not summary.quantizes_activations:
        inputs = "weights alone (W4A16)"
    print(
        f"{destination}: {summary.format}, {summary.quantized_layers} linear layers in NVFP4, "
        f"by {summary.method}, {inputs}, {len(summary.left_in_floats)} left in floats "
        f"({summary.bytes_left_in_floats / 1e6:.1f} MB), {before:.1f} MB -> {after:.1f} MB"
    )

    errors = summary.median_errors
    for what, title in (("weight", "weights"), ("output", "outputs")):
        if what in errors:
            before, after = errors[f"{what}_rtn"], errors[what]
            print(
                f"relative error of the layers' {title}, median: rtn {before:.4f}, here {after:.4f}"
            )
    for note in summary.notes:
        print(note)


@contextmanager
def _plain_warnings() -> Iterator[None]:
    """Print warnings as one line on stderr, without the line of code that they come from."""
    with warnings.catch_warnings():
        warnings.showwarning = lambda message, *_: typer.echo(f"warning: {message}", err=True)
        yield
