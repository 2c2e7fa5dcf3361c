"""A decode step's timeline: when the GPU works, and when it waits for the host."""

import gzip
import json
from collections.abc import Sequence
from pathlib import Path
from statistics import median
from typing import Any, NamedTuple

_WORK = ("kernel", "gpu_memcpy", "gpu_memset")


class Span(NamedTuple):
    """Work on the GPU, in microseconds."""

    begin: float
    duration: float
    name: str


def steps_of(trace: Path) -> dict[str, Any]:
    """Measure the decode steps in a trace of vLLM's torch profiler.

    A step lasts from the first kernel of a graph launch to that of the next one. Returns the
    medians in microseconds of a step and of its time without work on the GPU, and one step: the
    kernels that take longest, and when all of them begin and how long they run ("begin+duration").
    """
    opened = gzip.open if trace.suffix == ".gz" else open
    with opened(trace, "rt") as file:
        events = [e for e in json.load(file)["traceEvents"] if e.get("ph") == "X"]
    launches = {e["args"]["correlation"] for e in events if e["name"].startswith("cudaGraphLaunch")}
    work = sorted(
        (e["ts"], e["dur"], e["name"], e["args"].get("correlation"))
        for e in events
        if e.get("cat") in _WORK
    )
    begins: dict[Any, float] = {}
    for begin, _, _, correlation in work:
        if correlation in launches:
            begins.setdefault(correlation, begin)
    times = sorted(begins.values())[4:]  # the first steps follow a prefill
    spans = [Span(*w[:3]) for w in work]
    steps = [
        [s for s in spans if begin <= s.begin < end]
        for begin, end in zip(times, times[1:], strict=False)
    ]
    lengths = [end - begin for begin, end in zip(times, times[1:], strict=False)]
    idle = [length - busy(step) for length, step in zip(lengths, steps, strict=True)]
    middle = lengths.index(sorted(lengths)[len(lengths) // 2])
    return {
        "step us": median(lengths),
        "idle us": median(idle),
        "graph launches": len(begins),
        "kernels": _longest(steps[middle]),
        "one step": " ".join(
            f"{s.begin - times[middle]:.2f}+{s.duration:.2f}" for s in steps[middle]
        ),
    }


def _longest(step: Sequence[Span], most: int = 12) -> dict[str, Any]:
    """The kernels on which a step spends most of its time: how many, and how long together."""
    found: dict[str, list[float]] = {}
    for span in step:
        found.setdefault(span.name[:60], []).append(span.duration)
    ordered = sorted(found.items(), key=lambda item: -sum(item[1]))[:most]
    return {name: {"count": len(all_), "us": round(sum(all_), 1)} for name, all_ in ordered}


def busy(spans: Sequence[Span]) -> float:
    """The time in which at least one of the spans, sorted by their begin, runs."""
    total, end = 0.0, float("-inf")
    for span in spans:
        stop = span.begin + span.duration
        total += max(0.0, stop - max(span.begin, end))
        end = max(end, stop)
    return total


def plot(result: Path) -> None:
    """Draw one decode step of each engine, beside the result's file."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    found = json.loads(result.read_text())
    lines = found["decode steps of one sequence"]
    figure, axis = pyplot.subplots(figsize=(12, 1 + 0.7 * len(lines)))
    for row, step in enumerate(lines.values()):
        spans = [tuple(map(float, span.split("+"))) for span in step["one step"].split()]
        axis.broken_barh(spans, (row - 0.35, 0.7))
        end = step["step us"]
        axis.plot([end, end], [row - 0.45, row + 0.45], color="black")
        axis.text(end, row, f" {end:.0f} us, idle {step['idle us']:.0f}", va="center")
    axis.set_yticks(range(len(lines)), list(lines))
    axis.invert_yaxis()
    axis.set_xlim(0, 1.25 * max(step["step us"] for step in lines.values()))
    axis.set_xlabel("microseconds since the step's first kernel")
    axis.set_title(f"A decode step of one sequence: {found['model']} on {found['machine']['gpu']}")
    figure.tight_layout()
    figure.savefig(result.with_suffix(".png"), dpi=110)
