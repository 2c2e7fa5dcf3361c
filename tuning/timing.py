"""Timing variants of one job side by side.

A variant is a list of calls that do the same job on different copies of the data, so that the cache
is cold. On a GPU a variant's calls are captured into one CUDA graph and replayed; the variants take
turns within a round, so that a drift of the machine meets all of them alike.

Large GEMMs take all the power that a GPU may have, and it then lowers its clock, but not at once. A
turn therefore lasts: else a variant would be timed at the clock that those before it leave, and one
that takes less power would pay for others.
"""

import math
import statistics
import time
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import NamedTuple

import torch

Call = Callable[[], object]

TURN = 0.1
"""Seconds that a variant is replayed before it is timed, at least, on a GPU."""

SHORTEST = 1e-3
"""Seconds of one replay, at least: its start takes microseconds, which its calls share."""


class Timing(NamedTuple):
    """Seconds a call: the median of the rounds, and their least and greatest."""

    median: float
    least: float
    greatest: float


def _captured(calls: Sequence[Call]) -> torch.cuda.CUDAGraph:
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        for call in calls:
            call()
    return graph


def _seconds(graph: torch.cuda.CUDAGraph) -> float:
    """Of one replay."""
    begin, end = torch.cuda.Event(enable_timing=True), torch.cuda.Event(enable_timing=True)
    begin.record()
    graph.replay()
    end.record()
    end.synchronize()
    return begin.elapsed_time(end) * 1e-3


def _graph_replay(calls: Sequence[Call], seconds: float) -> Callable[[], float]:
    for call in calls:  # compile, and let allocators and libraries settle
        call()
    torch.cuda.synchronize()
    graph = _captured(calls)
    _seconds(graph)
    repeats = math.ceil(SHORTEST / _seconds(graph))
    if repeats > 1:
        graph = _captured([*calls] * repeats)

    def turn() -> float:
        started = time.perf_counter()
        last = _seconds(graph)
        while time.perf_counter() - started < seconds:
            last = _seconds(graph)
        return last / (repeats * len(calls))

    return turn


def _host_loop(calls: Sequence[Call]) -> Callable[[], float]:
    calls[0]()

    def once() -> float:
        begin = time.perf_counter()
        for call in calls:
            call()
        return (time.perf_counter() - begin) / len(calls)

    return once


def compare(
    variants: Mapping[str, Sequence[Call]], device: str, rounds: int, turn: float = TURN
) -> dict[str, Timing]:
    """Time every variant, interleaved."""
    prepare = partial(_graph_replay, seconds=turn) if device == "cuda" else _host_loop
    timers = {name: prepare(calls) for name, calls in variants.items()}
    seconds: dict[str, list[float]] = {name: [] for name in timers}
    for once in timers.values():
        once()
    for _ in range(rounds):
        for name, once in timers.items():
            seconds[name].append(once())
    return {name: Timing(statistics.median(s), min(s), max(s)) for name, s in seconds.items()}


def host_seconds(call: Call, repeats: int = 200) -> float:
    """The CPU's time to issue one call, the device's own work not waited for: it is given a few
    calls at a time, of which its queue holds more.
    """
    few = min(repeats, 50)
    seconds = []
    for _ in range(1 + repeats // few):
        begin = time.perf_counter()
        for _ in range(few):
            call()
        seconds.append((time.perf_counter() - begin) / few)
        if torch.cuda.is_available():
            torch.cuda.synchronize()
    return statistics.median(seconds[1:])  # the first warm up
