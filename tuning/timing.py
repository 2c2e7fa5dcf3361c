"""Timing of several variants of one job, interleaved and on cold data.

A variant is a list of calls that do the same job on different copies of the data, so that the cache
is cold. On a GPU its calls are captured into one CUDA graph and replayed. The variants take turns
within a round, so that drift of the machine affects them all alike.

Large GEMMs reach a GPU's power limit, and the clock then falls, but not at once. So each variant is
replayed for a while before it is timed. Otherwise its clock would depend on the power that the
variants before it took.
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
"""The least number of seconds for which a variant is replayed before it is timed, on a GPU."""

SHORTEST = 1e-3
"""The least number of seconds of one replay, because starting it takes microseconds."""


class Timing(NamedTuple):
    """The seconds of one call: median, least and greatest of the rounds."""

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
    """Time one replay of a graph."""
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
    """Time the variants, interleaved; each is replayed for `turn` seconds before it is timed."""
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
    """The CPU's time to issue one call, without the device's work.

    Calls are issued a few at a time, because the device's queue is limited.
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
    return statistics.median(seconds[1:])  # the first ones warm up
