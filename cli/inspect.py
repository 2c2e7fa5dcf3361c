"""python -m nvfp4 inspect: the contents of an NVFP4 checkpoint, and damage found in it."""

import json
import re
from collections import Counter, defaultdict
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from rich import box
from rich.console import Console
from rich.table import Table

from nvfp4.cli.errors import user_errors
from nvfp4.cli.progress import steps

if TYPE_CHECKING:
    from nvfp4.checkpoints.inspect import Inspection, Layer

PIPE_WIDTH = 120
SHOWN = 20
"""The most findings that are printed; --json has all."""


def inspect(
    folder: Annotated[Path, typer.Argument(metavar="DIR", help="A checkpoint's folder.")],
    as_json: Annotated[bool, typer.Option("--json", help="Machine-readable, on stdout.")] = False,
) -> None:
    """List the NVFP4 layers of a checkpoint, their scales, and what is damaged or looks wrong.

    The exit status is 1 if anything is damaged.
    """
    with user_errors(), steps() as step:
        if find_spec("safetensors") is None:
            raise ValueError("inspect needs pip install 'nvfp4[checkpoints]', got no safetensors")
        from nvfp4.checkpoints.inspect import inspect as run

        found = run(folder, step)
    if as_json:
        print(json.dumps(found.as_dict(), indent=2))
    else:
        console = Console()
        _print(found, console if console.is_terminal else Console(width=PIPE_WIDTH))
    if found.damaged:
        raise typer.Exit(1)


def _print(found: "Inspection", console: Console) -> None:
    inputs = "input scales calibrated" if found.calibrated else "input scales per token"
    inputs = inputs if found.quantizes_activations else "weights alone (W4A16)"
    title = f"{found.folder}: {found.format}, {inputs}"
    console.print(title, highlight=False, soft_wrap=True)
    table = Table(box=box.SIMPLE_HEAD, padding=0, collapse_padding=True)
    table.add_column("layers", no_wrap=True)
    given = ("input scale",) if found.calibrated else ()
    for column in ("count", "NxK", "global scale", *given, "block scales", "at 448", "zero", "MB"):
        table.add_column(column, justify="right", overflow="fold")
    alike: dict[tuple[str, tuple[int, int]], list[Layer]] = defaultdict(list)
    for layer in found.layers:
        alike[re.sub(r"\.\d+(?=\.)", ".*", layer.module), layer.shape].append(layer)
    for (name, shape), layers in alike.items():
        known = [layer.input_global_scale for layer in layers if layer.input_global_scale]
        table.add_row(
            name,
            str(len(layers)),
            f"{shape[0]}x{shape[1]}",
            _range([layer.global_scale for layer in layers]),
            *([_range(known)] if found.calibrated else []),
            f"{min(each.scale_min for each in layers):g}.."
            f"{max(each.scale_max for each in layers):g}",
            f"{max(each.saturated for each in layers):.2%}",
            f"{max(each.zero for each in layers):.2%}",
            f"{sum(each.nbytes for each in layers) / 1e6:.1f}",
        )
    console.print(table)
    before = sum(layer.nbytes_bf16 for layer in found.layers) / 1e6
    saved, count = found.bytes_saved / 1e6, len(found.layers)
    console.print(
        f"{count} layers, {before - saved:.1f} MB instead of {before:.1f} MB in bf16 "
        f"({saved:.1f} MB saved); {len(found.unquantized)} layers of the blocks in floats",
        highlight=False,
        soft_wrap=True,
    )
    if found.others:
        counts = ", ".join(f"{n} in {form}" for form, n in Counter(found.others.values()).items())
        console.print(f"quantized to other formats: {counts}", highlight=False, soft_wrap=True)
    for finding in found.findings[:SHOWN]:
        line = f"{finding.kind}: {finding.module}: {finding.what}"
        console.print(line, markup=False, highlight=False, soft_wrap=True)
    if len(found.findings) > SHOWN:
        console.print(f"… and {len(found.findings) - SHOWN} more (--json)", highlight=False)


def _range(values: list[float]) -> str:
    return f"{min(values):.1e}..{max(values):.1e}" if values else "none"
