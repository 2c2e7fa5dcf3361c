"""python -m nvfp4.bench.calibration: calibrate the model of choose_config on published times.

It fits what the training half of results/b200_published.json can tell apart, by least squares on
the logarithm of modelled / published time. It prints the constants, and a table with both halves.
Every second row is held out: nothing is fitted to it.
"""

import json
from math import exp, sqrt
from pathlib import Path
from statistics import mean, median
from typing import NamedTuple

import torch
from torch import Tensor

from nvfp4.backends.cutedsl.gemm.choose import (
    B200,
    Machine,
    Prediction,
    choose_config,
    choose_grouped_config,
)

PUBLISHED = Path(__file__).parent / "results" / "b200_published.json"

FITTED = ("clock", "launch", "epilogue")
"""What is fitted. HBM limits no row of the training half, and no row is known to split K."""

START = B200._replace(clock=1.85e9, launch=2.5e-6, epilogue=1e-6)
"""Where the search begins: the published clock, and guesses."""

NEAR = 0.25
"""How far modelled / published is from 1 in a row that counts as near."""


class Row(NamedTuple):
    """A published time, as results/b200_published.json describes it."""

    m: int
    n: int
    k: int
    us: tuple[float, float]
    source: str
    experts: int = 0
    glu: bool = False

    @property
    def published(self) -> float:
        """Seconds: the geometric mean of the least and the greatest published time."""
        return sqrt(self.us[0] * self.us[1]) * 1e-6


def published() -> list[Row]:
    """The rows of the file, in its order."""
    return [
        Row(**row | {"us": tuple(row["us"])}) for row in json.loads(PUBLISHED.read_text())["rows"]
    ]


def training(rows: list[Row]) -> list[Row]:
    return rows[::2]


def held_out(rows: list[Row]) -> list[Row]:
    return rows[1::2]


def modelled(row: Row, machine: Machine) -> Prediction:
    """The prediction for a row. K is not split, as far as is known of the published kernels."""
    if row.experts:
        shape = row.m, row.experts, row.n, row.k
        return choose_grouped_config.__wrapped__(*shape, glu=row.glu, machine=machine)
    return choose_config.__wrapped__(row.m, row.n, row.k, splits=False, machine=machine)


def ratios(rows: list[Row], machine: Machine) -> list[float]:
    """Modelled / published time of each row."""
    return [modelled(row, machine).time / row.published for row in rows]


def fit(rows: list[Row], start: Machine = START) -> Machine:
    """The machine with the least sum of squared logarithms of `ratios`.

    Levenberg and Marquardt's method on the logarithms of what is fitted, with numeric derivatives.
    """
    step, damping = 1e-4, 1e-2
    x = torch.tensor([getattr(start, name) for name in FITTED], dtype=torch.float64).log()

    def machine(x: Tensor) -> Machine:
        return start._replace(**dict(zip(FITTED, x.exp().tolist(), strict=True)))

    def errors(x: Tensor) -> Tensor:
        return torch.tensor(ratios(rows, machine(x)), dtype=torch.float64).log()

    now = errors(x)
    while damping < 1e6:
        moves = torch.eye(len(x), dtype=torch.float64) * step
        slopes = torch.stack([(errors(x + d) - errors(x - d)) / (2 * step) for d in moves], dim=1)
        normal = slopes.T @ slopes
        damped = normal + damping * torch.eye(len(x), dtype=torch.float64)
        new = x - torch.linalg.solve(damped, slopes.T @ now).clamp(-0.5, 0.5)
        if (after := errors(new)).square().sum() < now.square().sum() - 1e-12:
            x, now, damping = new, after, damping / 3
        else:
            damping *= 4
    return machine(x)


class Errors(NamedTuple):
    """What a list of ratios says of the model."""

    median: float
    typical: float
    """The root of the mean square of the ratio's logarithm, as a factor less 1."""
    near: int
    """How many rows are within NEAR of 1."""
    rows: int

    def __str__(self) -> str:
        return (
            f"median {self.median:.2f}, typical error {self.typical:.0%}, "
            f"{self.near} of {self.rows} rows within {NEAR:.0%}"
        )


def errors_of(found: list[float]) -> Errors:
    logs = torch.tensor(found, dtype=torch.float64).log()
    near = sum(abs(ratio - 1) <= NEAR for ratio in found)
    return Errors(median(found), exp(sqrt(mean(logs.square().tolist()))) - 1, near, len(found))


def table(rows: list[Row], machine: Machine) -> str:
    """Published and modelled times as a table in Markdown."""
    lines = ["| M x N x K | published us | modelled us | ratio | half |", "|---|---|---|---|---|"]
    for index, row in enumerate(rows):
        prediction = modelled(row, machine)
        shape = f"{row.m}x{row.n}x{row.k}"
        if row.experts:
            shape += f", {row.experts} experts" + ", gated" * row.glu
        low, high = row.us
        us = f"{low:g}" if low == high else f"{low:g} to {high:g}"
        half = "held out" if index % 2 else "training"
        ratio = prediction.time / row.published
        lines.append(f"| {shape} | {us} | {prediction.time * 1e6:.1f} | {ratio:.2f} | {half} |")
    return "\n".join(lines)


def main() -> None:
    rows = published()
    found = fit(training(rows))
    for name in FITTED:
        print(f"{name}: {getattr(found, name):.4g} (choose.py has {getattr(B200, name):.4g})")
    print(f"\n{table(rows, B200)}\n")
    print(f"training: {errors_of(ratios(training(rows), B200))}")
    print(f"held out: {errors_of(ratios(held_out(rows), B200))}")


if __name__ == "__main__":
    main()
