"""The command line of nvfp4.bench.engine."""

from pathlib import Path

import typer

from nvfp4.bench.engine import measure as measuring
from nvfp4.bench.engine import models, timeline
from nvfp4.bench.engine import serve as serving

app = typer.Typer(add_completion=False, pretty_exceptions_enable=False)


@app.command()
def write(model: str, folder: Path, layers: int = 0) -> None:
    """Write a model's checkpoints to FOLDER; with --layers, only so many of its layers."""
    sizes = models.MODELS[model]
    models.write(sizes._replace(layers=layers or sizes.layers), folder)


@app.command()
def measure(
    folder: Path,
    result: Path,
    rounds: int = 3,
    patience: float = 300,
    tensor_parallel: int = 1,
    engines: str = ",".join(serving.ENGINES),
    again: bool = True,
) -> None:
    """Start engines on FOLDER's checkpoints, measure them in turns, and write RESULT.

    With --tensor-parallel, the GPUs also share out the experts of a mixture.
    """
    setting = measuring.Setting(folder, result, tensor_parallel, patience)
    found = measuring.measure(setting, engines.split(","), rounds, again)
    measuring.write(found, result)
    print(measuring.table(found))


@app.command()
def serve(name: str, folder: Path, tensor_parallel: int = 1, traces: Path | None = None) -> None:
    """Be one engine of `measure`."""
    serving.serve(name, folder, tensor_parallel, traces)


@app.command()
def plot(result: Path) -> None:
    """Draw the decode steps of RESULT.json."""
    timeline.plot(result)


if __name__ == "__main__":
    app()
