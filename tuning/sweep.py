"""Compile, check and time many configurations of one kernel, interleaved and on cold data."""

import os
from collections.abc import Callable, Sequence
from concurrent.futures import ProcessPoolExecutor
from functools import partial
from multiprocessing import get_context
from typing import Any

import torch
from torch import Tensor

from nvfp4.backends.triton.runtime.launch import Launch
from nvfp4.tuning.timing import compare

DEVICE = torch.device("cuda" if torch.cuda.is_available() else "cpu")

WEIGHT_COPIES = 12 if DEVICE.type == "cuda" else 1
"""Copies of a weight that take turns. 12 of the smallest one swept exceed an H200's 60 MB of L2."""

TURN = 0.03
"""Seconds for which a configuration is replayed before it is timed.

It is shorter than a benchmark's turn: there are many configurations, and they are much alike.
"""

Planned = tuple[Tensor, Sequence[Launch]]
"""An output, and the launches that fill it."""

Plans = list[Callable[[], Planned]]
"""One function for each copy of the data; it allocates an output and plans the launches."""

Problem = Callable[[int], Callable[[Any], Plans]]
"""Makes the data in so many copies; the function returned plans for a configuration."""


def largest_column_error(got: Tensor, want: Tensor) -> float:
    """The largest error of a column of [M, N], relative to the column or to the average column.

    One wrong row of weights is found by this among thousands of right ones.
    """
    got, want = got.double(), want.double()
    columns = want.norm(dim=0)
    average = columns.square().mean().sqrt()
    return float(((got - want).norm(dim=0) / columns.clamp(min=average)).max())


def _run(launches: Sequence[Launch]) -> None:
    for launch in launches:
        launch.run()


def _plan_and_run(plan: Callable[[], Planned]) -> None:
    _run(plan()[-1])


def _compile(problem: Problem, share: list[Any]) -> None:
    """Run each configuration of a worker's share once: Triton's disk cache keeps the kernels."""
    plans_of = problem(1)
    for config in share:
        try:
            _run(plans_of(config)[0]()[-1])
        except Exception:  # what does not fit is reported by the parent, which meets it again
            continue
    torch.cuda.synchronize()


def _compile_all(problem: Problem, configs: list[Any]) -> None:
    workers = max(1, (os.cpu_count() or 2) - 1)
    with ProcessPoolExecutor(workers, mp_context=get_context("spawn")) as pool:
        shares = [configs[i::workers] for i in range(workers)]
        list(pool.map(partial(_compile, problem), shares))


def sweep(problem: Problem, configs: list[Any], copies: int, exact: bool) -> list[dict[str, Any]]:
    """Time each configuration and compare its result with the first one's; the fastest first.

    With `exact`, a result is right only if its bits are the first one's. Otherwise a bf16 rounding
    step of error is allowed. A configuration that does not fit this GPU has an "error" instead.
    `problem` is sent to other processes on a GPU, so it has to be picklable.
    """
    if DEVICE.type == "cuda":  # else they are interpreted
        _compile_all(problem, configs)
    plans_of = problem(copies)
    rows: list[dict[str, Any]] = []
    calls: dict[str, list[Callable[[], None]]] = {}
    first: Tensor | None = None
    for config in configs:
        try:
            out, launches = plans_of(config)[0]()
            out.view(torch.uint8).fill_(0x7F)
            _run(launches)
            if DEVICE.type == "cuda":
                torch.cuda.synchronize()
        except Exception as error:  # too much shared memory or too many registers for this GPU
            rows.append({"config": config._asdict(), "error": str(error)[:80]})
            continue
        first = out if first is None else first
        same = torch.equal(out.view(torch.uint8), first.view(torch.uint8))
        right = same or (not exact and largest_column_error(out, first) <= 2**-7)
        rows.append({"config": config._asdict(), "same_bits": same, "right": right})
        calls[str(len(rows) - 1)] = [partial(_plan_and_run, plan) for plan in plans_of(config)]
    for index, timing in compare(calls, DEVICE.type, 7, TURN).items():
        rows[int(index)]["microseconds"] = timing.median * 1e6
    return sorted(rows, key=lambda row: row.get("microseconds", float("inf")))
