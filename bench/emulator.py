"""The speed of the emulator in CPU time: sm_100 GEMMs, and two calls of Triton kernels.

python -m nvfp4.bench.emulator
"""

import json
import platform
import statistics
import time
from collections.abc import Callable, Iterable
from itertools import repeat
from pathlib import Path
from typing import Annotated, NamedTuple, Protocol

import torch
import typer

import nvfp4
from nvfp4.backends.cutedsl.gemm.choose import B200_SMS
from nvfp4.backends.cutedsl.gemm.config import Tile
from nvfp4.backends.cutedsl.gemm.launch import plan
from nvfp4.backends.cutedsl.runtime import emulated
from nvfp4.backends.recording import recorded
from nvfp4.backends.triton.runtime.emulated import options_of, run_one
from nvfp4.backends.triton.runtime.launch import Launch
from nvfp4.bench.run import commit_of, version_of
from nvfp4.calls import Mm
from nvfp4.spec.swizzle import swizzled_shape

TILES = {
    "one tile": ((128, 256, 512), Tile(128, 256)),
    "a pair's tile": ((256, 256, 512), Tile(256, 256, cluster_rows=2)),
    "sixteen tiles": ((512, 512, 512), Tile(128, 128)),
    "few tokens, split-K": ((8, 1024, 2048), Tile(128, 8, split_k=2, swapped=True)),
}
"""GEMMs (M, N, K) of the cutedsl backend for sm_100."""

ROWS = 128
TRITON_SM = 80
"""The architecture of the Triton kernels."""
ROUNDS = 7


class Report(Protocol):
    """What a launch reports: how many instructions its warps ran."""

    instructions: int


class Measured(NamedTuple):
    """One call: its seconds of CPU time, and the instructions that its warps ran."""

    seconds: float
    instructions: int


def measured(run: Callable[[], Iterable[Report]]) -> list[Measured]:
    """Time ROUNDS calls, after a first one that compiles."""
    calls = []
    for _ in range(ROUNDS + 1):
        start = time.process_time()
        reports = list(run())
        seconds = time.process_time() - start
        calls.append(Measured(seconds, sum(report.instructions for report in reports)))
    return calls[1:]


def tile_case(shape: tuple[int, int, int], tile: Tile) -> list[Measured]:
    m, n, k = shape
    a, b = (torch.randint(0, 256, (rows, k // 2), dtype=torch.uint8) for rows in (m, n))
    a_scales, b_scales = (
        torch.full(swizzled_shape(rows, k), 0x38, dtype=torch.uint8) for rows in (m, n)
    )
    alpha, out = torch.ones(1, 1), torch.empty(m, n, dtype=torch.bfloat16)
    call = Mm(a, b, a_scales, b_scales, alpha)
    return measured(lambda: [emulated.run(plan(call, out, tile, B200_SMS))])


def triton_case(call: Callable[[], object]) -> list[Measured]:
    """Time a call's launches, which Triton compiles before."""
    with nvfp4.emulate(sm=TRITON_SM), recorded() as recording:
        call()
    launches = [launch for launch in recording.launches if isinstance(launch, Launch)]
    options = [options_of(launch, launches[:index]) for index, launch in enumerate(launches)]
    return measured(lambda: map(run_one, launches, repeat(TRITON_SM), options))


def triton_calls() -> dict[str, Callable[[], object]]:
    x = torch.randn(ROWS, 1024, dtype=torch.bfloat16)
    a, b = (nvfp4.quantize_dynamic(torch.randn(64, 512, dtype=torch.bfloat16)) for _ in range(2))
    return {
        f"quantize_dynamic {ROWS}x1024, sm_{TRITON_SM}": lambda: nvfp4.quantize_dynamic(
            x, backend="triton"
        ),
        f"mm 64x64x512, sm_{TRITON_SM}": lambda: nvfp4.mm(a, b, backend="triton"),
    }


def main(
    out: Annotated[Path, typer.Option(help="Where the JSON goes.")] = Path(
        "bench/results/emulator.json"
    ),
) -> None:
    """Time the emulator, with detection of hazards, and write the times."""
    torch.manual_seed(0)
    results = {
        f"{name} {shape}, {tile}": tile_case(shape, tile) for name, (shape, tile) in TILES.items()
    }
    results |= {name: triton_case(call) for name, call in triton_calls().items()}
    rows = []
    for name, calls in results.items():
        median = statistics.median(call.seconds for call in calls)
        instructions = calls[0].instructions
        rows.append(
            {
                "case": name,
                "median CPU seconds": round(median, 4),
                "fastest CPU seconds": round(min(call.seconds for call in calls), 4),
                "instructions": instructions,
                "instructions a second": round(instructions / median),
            }
        )
        print(f"{name}: {median:.4f} s, {instructions} instructions")
    packages = ("torch", "numpy", "nvidia-cutlass-dsl")
    machine = {
        **{package: version_of(package) for package in packages},
        "python": platform.python_version(),
        "machine": f"{platform.machine()}, a shared CPU, one thread",
        "commit": commit_of(),
        "command": "python -m nvfp4.bench.emulator",
    }
    out.write_text(json.dumps({"machine": machine, "rows": rows}, indent=1) + "\n")


if __name__ == "__main__":
    typer.run(main)
