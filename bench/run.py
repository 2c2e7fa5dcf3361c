"""The benchmark: it times the ceilings, then checks and times every case."""

import json
import os
import platform
import subprocess
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import torch

from nvfp4.backends.recording import recorded
from nvfp4.bench import cases
from nvfp4.bench.moe import Sizes, moe
from nvfp4.dispatch.explain import explain
from nvfp4.tuning.timing import Call, compare, host_seconds

QUANTIZERS = (
    "quantize",
    "quantize_dynamic",
    "quantize by four_over_six",
    "quantize_dynamic by four_over_six",
    "silu_mul_quantize",
    "dequantize",
)
OPS = (*QUANTIZERS, "linear", "moe")
GPU_ROWS = ((8192, 7168), (64, 7168), (1, 7168))
GPU_WEIGHTS = ((6144, 3584), (9216, 3584), (7168, 2048), (4096, 7168), (16384, 7168), (8192, 8192))
GPU_TOKENS = (1, 8, 16, 64, 256, 1024, 4096, 8192)
GPU_EXPERTS = (Sizes(4096, 2048, 256, 256, 6), Sizes(7168, 2048, 32, 256, 8))
GPU_MOE_TOKENS = (1, 16, 128, 1024, 8192)
CPU_ROWS = ((128, 1024),)
CPU_WEIGHTS = ((256, 512),)
CPU_TOKENS = (1, 32)
CPU_EXPERTS = (Sizes(128, 64, 4, 8, 2),)


@dataclass(frozen=True)
class Row:
    """One measured op, with times in microseconds.

    configuration: the kernels that were launched, and their tiles.
    of_ceiling: the fraction of this run's copy rate (memory-bound ops) or bf16 matmul rate (GEMMs).
    ratios: peer's time / our time; over 1, ours is faster.
    """

    op: str
    shape: str
    backend: str
    configuration: str
    microseconds: float
    least: float
    greatest: float
    gigabytes_per_second: float
    teraflops: float
    of_ceiling: float
    host_microseconds: float
    ratios: dict[str, float]


@dataclass(frozen=True)
class Results:
    machine: dict[str, Any]
    rows: list[Row]

    def as_dict(self) -> dict[str, Any]:
        return asdict(self)

    def markdown(self) -> str:
        """Make tables of the ops, one a section, and of the machine."""
        peers = sorted({peer for row in self.rows for peer in row.ratios})
        head = [
            "op",
            "shape",
            "backend",
            "µs",
            "least–greatest",
            "GB/s",
            "TFLOP/s",
            "of ceiling",
            "host µs",
        ]
        lines = [
            _line([*head, *(f"vs {peer}" for peer in peers), "configuration"]),
            _line(["---"] * (len(head) + len(peers) + 1)),
        ]
        for row in self.rows:
            cells = [
                row.op,
                row.shape,
                row.backend,
                f"{row.microseconds:.1f}",
                f"{row.least:.1f}–{row.greatest:.1f}",
                f"{row.gigabytes_per_second:.0f}",
                f"{row.teraflops:.1f}" if row.teraflops else "",
                f"{row.of_ceiling:.0%}",
                f"{row.host_microseconds:.0f}",
            ]
            ratios = (f"{row.ratios[p]:.2f}" if p in row.ratios else "" for p in peers)
            lines.append(_line([*cells, *ratios, row.configuration]))
        facts = "\n".join(f"- {name}: {value}" for name, value in self.machine.items())
        return "\n".join(lines) + f"\n\n{facts}\n"

    def write(self, folder: Path, name: str) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        (folder / f"{name}.json").write_text(json.dumps(self.as_dict(), indent=1) + "\n")
        (folder / f"{name}.md").write_text(self.markdown())


def _line(cells: list[str]) -> str:
    return "| " + " | ".join(cells) + " |"


def version_of(package: str) -> str:
    try:
        return version(package)
    except PackageNotFoundError:
        return "none"


def commit_of() -> str:
    """The commit of the checkout that holds this file; "unknown" outside of one."""
    here = Path(__file__).resolve().parent
    told = subprocess.run(
        ["git", "describe", "--always", "--dirty"], cwd=here, capture_output=True, text=True
    )
    return told.stdout.strip() or "unknown"


def _jobs(device: str, only: str) -> Iterator[Callable[[], cases.Case]]:
    rows, weights, tokens = (
        (GPU_ROWS, GPU_WEIGHTS, GPU_TOKENS)
        if device == "cuda"
        else (CPU_ROWS, CPU_WEIGHTS, CPU_TOKENS)
    )
    for op in QUANTIZERS:
        if only in ("", op):
            yield from (lambda op=op, m=m, k=k: cases.quantizer(op, m, k, device) for m, k in rows)
    if only in ("", "linear"):
        for n, k in weights:
            yield from (lambda n=n, k=k, m=m: cases.linear(m, n, k, device) for m in tokens)
    if only in ("", "moe"):
        gpu = device == "cuda"
        for sizes in GPU_EXPERTS if gpu else CPU_EXPERTS:
            counts = GPU_MOE_TOKENS if gpu else CPU_TOKENS
            yield from (lambda m=m, sizes=sizes: moe(m, sizes, device) for m in counts)


def run(
    only: str,
    rounds: int,
    commit: str,
    step: Callable[[str, int], Callable[[], None]],
    keep: Callable[[Results], None] = lambda results: None,
) -> Results:
    """Run the benchmark on this machine; `only` names one op, and "" runs all.

    `keep` is called with the results so far after each row.
    """
    if only not in ("", *OPS):
        raise ValueError(f"nvfp4 bench: --op needs one of {', '.join(OPS)}, got {only!r}")
    device = "cuda" if torch.cuda.is_available() else "cpu"
    ceilings = {}
    for case in (cases.copy(device), cases.matmul(device)):
        seconds = compare(case.variants, device, rounds)["ceiling"].median
        ceilings[case.op] = (case.bytes_moved if case.op == "copy" else case.flops) / seconds

    machine: dict[str, Any] = {
        "gpu": torch.cuda.get_device_name() if device == "cuda" else "none",
        "cpu": f"{platform.machine()}, {os.cpu_count()} cores",
        "python": platform.python_version(),
        "torch": torch.__version__,
        "triton": version_of("triton"),
        "commit": commit or commit_of(),
        "copy": f"{ceilings['copy'] / 1e12:.2f} TB/s",
        "bf16 matmul": f"{ceilings['matmul'] / 1e12:.1f} TFLOP/s",
        "rounds": rounds,
    }
    if device == "cuda":
        machine["host, one launch by Triton"] = (
            f"{host_seconds(cases.bare_launch(device)) * 1e6:.0f} µs"
        )

    jobs = list(_jobs(device, only))
    done = step("benchmark", len(jobs))
    results = Results(machine, [])
    with torch.inference_mode():
        for make in jobs:
            torch.manual_seed(0)
            results.rows.append(_measure(make(), device, rounds, ceilings))
            keep(results)
            done()
    return results


def configuration_of(call: Call) -> str:
    """The kernels of a call, each with its compile-time arguments, such as the tile."""
    with recorded() as recording:
        call()
    return "; ".join(launch.describe() for launch in recording.launches)


def _measure(case: cases.Case, device: str, rounds: int, ceilings: dict[str, float]) -> Row:
    case.check()
    timings = compare(case.variants, device, rounds)
    ours = timings.pop("nvfp4")
    rate = case.bytes_moved / ours.median
    compute = case.flops / ours.median
    return Row(
        op=case.op,
        shape=case.shape,
        backend=explain(case.op.partition(" by ")[0], device).backend,
        configuration=configuration_of(case.variants["nvfp4"][0]),
        microseconds=ours.median * 1e6,
        least=ours.least * 1e6,
        greatest=ours.greatest * 1e6,
        gigabytes_per_second=rate / 1e9,
        teraflops=compute / 1e12,
        # The larger of the two fractions is the limit that binds.
        of_ceiling=max(rate / ceilings["copy"], compute / ceilings["matmul"]),
        host_microseconds=host_seconds(case.variants["nvfp4"][0], 200 if device == "cuda" else 3)
        * 1e6,
        ratios={peer: timing.median / ours.median for peer, timing in timings.items()},
    )
