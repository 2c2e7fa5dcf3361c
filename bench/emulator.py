"""The speed of the sm_100 emulator: one tile and a few GEMMs on this CPU, with one thread.

python -m nvfp4.bench.emulator
"""

import json
import platform
import statistics
import time
from pathlib import Path
from typing import Annotated

import torch
import typer

from nvfp4.backends.cutedsl.gemm.choose import B200_SMS
from nvfp4.backends.cutedsl.gemm.config import Tile
from nvfp4.backends.cutedsl.gemm.launch import plan, run_or_emulate
from nvfp4.bench.run import commit_of, version_of
from nvfp4.calls import Mm
from nvfp4.spec.swizzle import swizzled_shape

CASES = {
    "one tile": ((128, 256, 512), Tile(128, 256)),
    "a pair's tile": ((256, 256, 512), Tile(256, 256, cluster_rows=2)),
    "sixteen tiles": ((512, 512, 512), Tile(128, 128)),
    "few tokens, split-K": ((8, 1024, 2048), Tile(128, 8, split_k=2, swapped=True)),
}
ROUNDS = 7


def _seconds(shape: tuple[int, int, int], tile: Tile) -> list[float]:
    """Time ROUNDS calls, after a first one that compiles."""
    m, n, k = shape
    a, b = (torch.randint(0, 256, (rows, k // 2), dtype=torch.uint8) for rows in (m, n))
    a_scales, b_scales = (
        torch.full(swizzled_shape(rows, k), 0x38, dtype=torch.uint8) for rows in (m, n)
    )
    alpha, out = torch.ones(1, 1), torch.empty(m, n, dtype=torch.bfloat16)
    call = Mm(a, b, a_scales, b_scales, alpha)
    taken = []
    for _ in range(ROUNDS + 1):
        start = time.perf_counter()
        run_or_emulate(plan(call, out, tile, B200_SMS))
        taken.append(time.perf_counter() - start)
    return taken[1:]


def main(
    out: Annotated[Path, typer.Option(help="Where the JSON goes.")] = Path(
        "bench/results/emulator.json"
    ),
) -> None:
    """Time the emulator, with detection of hazards, and write the times."""
    rows = []
    for name, (shape, tile) in CASES.items():
        taken = _seconds(shape, tile)
        rows.append(
            {
                "case": name,
                "m n k": shape,
                "tile": str(tile),
                "median seconds": round(statistics.median(taken), 4),
                "slowest seconds": round(max(taken), 4),
            }
        )
        print(f"{name} {shape}, {tile}: {rows[-1]['median seconds']} s")
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
