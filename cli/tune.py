"""python -m nvfp4 tune: measure which tiles are fastest on this machine, and keep them."""

import os
from pathlib import Path
from typing import Annotated

import torch
import typer

from nvfp4.cli.errors import needs_package, user_errors, write_text
from nvfp4.cli.progress import steps
from nvfp4.cli.warmup import weight_shape


def tune(
    out: Annotated[Path, typer.Option(help="The file to write; NVFP4_TUNED names it to the ops.")],
    shape: Annotated[list[str], typer.Option(help="A weight's NxK; may be given again.")],
    tokens: Annotated[
        list[int] | None,
        typer.Option(min=1, help="A number of tokens; may be given again. Default: 1 to 8192."),
    ] = None,
) -> None:
    """Time the Triton backend's tiles for linear, and write the fastest to a file.

    mm and linear use the file that NVFP4_TUNED names. All ranks of a model need the same file.
    """
    # Triton decides whether it interprets when it is imported.
    if not torch.cuda.is_available():
        os.environ.setdefault("TRITON_INTERPRET", "1")
    with user_errors(), steps() as step:
        needs_package("tune", "triton")
        shapes = [weight_shape(text) for text in shape]
        from nvfp4.backends.environment import TUNED
        from nvfp4.backends.triton.gemm.tuned import as_text
        from nvfp4.tuning.linear import TOKENS, tune_linear
        from nvfp4.tuning.sweep import DEVICE

        counts = tokens or TOKENS
        picks = tune_linear(shapes, counts, step("tiles", len(shapes) * len(counts)))
        unfinished = out.with_name(out.name + ".unfinished")
        write_text(unfinished, as_text(picks, DEVICE))
        unfinished.replace(out)
    for (n, k), all_ in picks.items():
        for pick in all_:
            print(f"{pick.m}x{n}x{k}: {pick.fastest}")
    print(f"{TUNED}={out}")
