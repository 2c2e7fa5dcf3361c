"""A comparison of the machine code of sm_100 GEMMs, which needs no GPU.

    python -m nvfp4.bench.sm100_static

It counts the instructions that an MMA or TMA warp issues for K = 256, and those of an epilogue
thread for an element. They bound the speed of a tile, but they are not times. Each kernel is
compiled in a new process.
"""

import json
import os
import platform
import sys
import tempfile
import time
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from dataclasses import asdict, dataclass
from importlib.util import find_spec
from multiprocessing import get_context
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, NamedTuple

import typer
from rich.console import Console
from rich.table import Table

from nvfp4.backends import environment
from nvfp4.bench import cubin
from nvfp4.bench.peers import Compiled, cutlass_operators, lightmoe
from nvfp4.bench.run import commit_of, version_of

if TYPE_CHECKING:
    from nvfp4.backends.cutedsl.gemm.config import Kernel


class Shape(NamedTuple):
    """The `m` x `n` outputs of one MMA (two CTAs if `m` is 256), and a cluster's CTAs, M by N."""

    m: int
    n: int
    cluster: tuple[int, int]

    def __str__(self) -> str:
        return f"{self.m}x{self.n}, cluster {self.cluster[0]}x{self.cluster[1]}"


TILES = (
    *(Shape(128, n, (1, 1)) for n in (64, 128, 192, 256)),
    *(Shape(256, n, (2, 1)) for n in (64, 128, 192, 256)),
)
GROUPED_TILES = tuple(Shape(128 * ctas, n, (ctas, 1)) for ctas in (1, 2) for n in (128, 256))
CONSTANT_TILES = (Shape(128, 128, (1, 1)), Shape(256, 256, (2, 1)))
PREFILL_TILES = (Shape(256, 128, (2, 1)), Shape(256, 256, (2, 1)))
"""Tiles that lightmoe takes for many tokens; its fused kernel has the first alone."""
GLU_TILES = tuple(Shape(128 * ctas, 256, (ctas, 1)) for ctas in (1, 2))
PACKAGES = ("nvidia-cutlass-dsl", cutlass_operators.PACKAGE, lightmoe.PACKAGE, "triton")


@dataclass(frozen=True)
class Row:
    """The counts of one compiled kernel.

    For K = 256 they are UTCOMMA, UTCCP (scales to TMEM) and UTMALDG, and all SASS of one pass of
    the loops with them. Epilogue SASS is counted by thread and element, in the loop over subtiles
    and for the whole tile; of a gated linear unit by element of gate or up, on the longest way.
    Fences are those that wait for global memory too (MEMBAR at GPU scope), in the whole kernel.
    Early loads are UTMALDG before the first ACQBULK (griddepcontrol.wait) of the TMA warp.
    Shared memory is dynamic, in bytes a block. Spills are local stores and loads in the SASS.
    """

    kernel: str
    tile: str
    mma: float
    scale_copies: float
    loads: float
    mma_loop: float
    tma_loop: float
    epilogue_loop: float
    epilogue_tile: float | None
    epilogue_warps: int
    gpu_fences: int
    early_loads: int
    load_stages: int
    accumulator_stages: int
    store_stages: int
    shared: int
    registers: int
    spills: int
    compile_seconds: float
    toolchain: str


HEADINGS = (
    "kernel",
    "tile",
    "MMA / scale copies / loads for K=256",
    "MMA loop SASS for K=256",
    "TMA loop SASS for K=256",
    "epilogue SASS an element, loop / tile",
    "epilogue warps",
    "MEMBAR.GPU",
    "loads before the wait for the kernel before",
    "stages load / accumulator / store",
    "shared B",
    "registers",
    "spills",
    "compile s",
)


def _cells(row: Row) -> list[str]:
    tile = "–" if row.epilogue_tile is None else f"{row.epilogue_tile:.2f}"
    return [
        row.kernel,
        row.tile,
        f"{row.mma:g} / {row.scale_copies:g} / {row.loads:g}",
        f"{row.mma_loop:g}",
        f"{row.tma_loop:g}",
        f"{row.epilogue_loop:.2f} / {tile}",
        str(row.epilogue_warps),
        str(row.gpu_fences),
        str(row.early_loads),
        f"{row.load_stages} / {row.accumulator_stages} / {row.store_stages}",
        str(row.shared),
        str(row.registers),
        str(row.spills),
        f"{row.compile_seconds:.2f}",
    ]


@dataclass(frozen=True)
class Results:
    machine: dict[str, str]
    rows: list[Row]

    def markdown(self) -> str:
        lines = [HEADINGS, ["---"] * len(HEADINGS), *map(_cells, self.rows)]
        facts = "\n".join(f"- {name}: {value}" for name, value in self.machine.items())
        return "\n".join(f"| {' | '.join(cells)} |" for cells in lines) + f"\n\n{facts}\n"

    def write(self, folder: Path) -> None:
        """Write sm100_static.json and sm100_static.md."""
        folder.mkdir(parents=True, exist_ok=True)
        (folder / "sm100_static.json").write_text(json.dumps(asdict(self), indent=1) + "\n")
        (folder / "sm100_static.md").write_text(self.markdown())


def dense(tile_m: int, tile_n: int, cluster: tuple[int, int]) -> Compiled:
    """Compile our GEMM of that tile, with alpha, a bias and bf16 out by TMA."""
    from nvfp4.backends.cutedsl.gemm.config import Epilogue, Kernel, Tile

    return _compile(Kernel(Tile(tile_m, tile_n, *cluster), Epilogue(bias=True)))


def constant(tile_m: int, tile_n: int, cluster: tuple[int, int]) -> Compiled:
    """Compile our GEMM as a later stage of an op has it: its weights are loaded early."""
    from nvfp4.backends.cutedsl.gemm.config import Epilogue, Kernel, Tile

    tile = Tile(tile_m, tile_n, *cluster)
    return _compile(Kernel(tile, Epilogue(row_scale=True), constant_weights=True))


def split_k(tile_m: int, tile_n: int, cluster: tuple[int, int]) -> Compiled:
    """Compile our GEMM for few tokens, K split over 8 CTAs, with alpha and bf16 out."""
    from nvfp4.backends.cutedsl.gemm.config import Epilogue, Kernel, Tile

    tile = Tile(tile_m, tile_n, split_k=cluster[0], swapped=True)
    return _compile(Kernel(tile, Epilogue(tma_store=False)))


def grouped(tile_m: int, tile_n: int, cluster: tuple[int, int]) -> Compiled:
    """Compile our grouped GEMM, with an alpha a segment and bf16 out by TMA."""
    from nvfp4.backends.cutedsl.gemm.config import Alpha, Epilogue, Kernel, Tile

    epilogue = Epilogue(alpha=Alpha.SEGMENTS)
    return _compile(Kernel(Tile(tile_m, tile_n, *cluster), epilogue, grouped=True))


def fused(tile_m: int, tile_n: int, cluster: tuple[int, int]) -> Compiled:
    """Compile our grouped GEMM with SwiGLU and quantization in its epilogue."""
    from nvfp4.backends.cutedsl.gemm.config import Epilogue, Glu, Kernel, Tile

    epilogue = Epilogue(row_scale=True, tma_store=False, glu=Glu())
    return _compile(Kernel(Tile(tile_m, tile_n, *cluster), epilogue, grouped=True))


def _compile(kernel: "Kernel") -> Compiled:
    """Compile anew: what the cache of compiled kernels has is not taken."""
    with tempfile.TemporaryDirectory() as folder:
        os.environ[environment.CACHE_DIR] = folder
        # Import it and the DSL before the clock starts.
        import nvfp4.backends.cutedsl.gemm.kernel  # noqa: F401
        from nvfp4.backends.cutedsl.gemm.layouts import layout_of
        from nvfp4.backends.cutedsl.runtime.compile import compiled

        start = time.perf_counter()
        code = compiled(kernel, "sm_100a")
        seconds = time.perf_counter() - start
    layout = layout_of(kernel)
    return Compiled(
        cubin=code.cubin,
        ptx=code.ptx,
        load_stages=layout.stages,
        accumulator_stages=layout.tmem.accumulators,
        store_stages=layout.output_sets,
        epilogue_warps=layout.epilogue_warps,
        shared=layout.shared_bytes,
        seconds=seconds,
    )


def _needs_ours() -> list[str]:
    if find_spec("cutlass") is None:
        return ["needs the package nvidia-cutlass-dsl, got none"]
    return []


Compile = Callable[[int, int, tuple[int, int]], Compiled]
Needs = Callable[[], list[str]]
KERNELS: dict[str, tuple[Compile, Needs, tuple[Shape, ...]]] = {
    "nvfp4": (dense, _needs_ours, TILES),
    "nvfp4, constant weights": (constant, _needs_ours, CONSTANT_TILES),
    "nvfp4 split-K": (split_k, _needs_ours, (Shape(128, 32, (8, 1)),)),
    "nvfp4 grouped": (grouped, _needs_ours, GROUPED_TILES),
    "nvfp4 grouped, SwiGLU, quantized": (fused, _needs_ours, GLU_TILES),
    cutlass_operators.PACKAGE: (cutlass_operators.compile, cutlass_operators.needs, TILES),
    "lightmoe grouped": (lightmoe.grouped, lightmoe.needs, PREFILL_TILES),
    "lightmoe grouped, SwiGLU, quantized": (lightmoe.fused, lightmoe.needs, PREFILL_TILES[:1]),
}
"""Kernels by name, each with what compiles it, what says what it needs, and its tiles."""


def read(kernel: str, tile: Shape, compiled: Compiled) -> Row:
    """Count a compiled kernel's instructions and resources."""
    instructions = cubin.sass(compiled.cubin)
    mma, tma = cubin.mma_loop(instructions), cubin.tma_loop(instructions)
    epilogue = cubin.epilogue_per_element(instructions, tile.n)
    found = cubin.resources(compiled.cubin)
    return Row(
        kernel=kernel,
        tile=str(tile),
        mma=mma.loop.count(cubin.MMA) / mma.steps,
        scale_copies=mma.loop.count("UTCCP") / mma.steps,
        loads=tma.loop.count(cubin.TMA_LOAD) / tma.steps,
        mma_loop=mma.sass,
        tma_loop=tma.sass,
        epilogue_loop=epilogue.loop,
        epilogue_tile=epilogue.tile,
        epilogue_warps=compiled.epilogue_warps,
        gpu_fences=cubin.gpu_fences(instructions),
        early_loads=cubin.early_loads(instructions),
        load_stages=compiled.load_stages,
        accumulator_stages=compiled.accumulator_stages,
        store_stages=compiled.store_stages,
        shared=compiled.shared,
        registers=found.registers,
        spills=found.spill_stores + found.spill_loads,
        compile_seconds=compiled.seconds,
        toolchain=cubin.toolchain(compiled.cubin),
    )


def run(say: Callable[[str], None]) -> Results:
    """Compile and read every tile of every kernel that can be compiled here."""
    rows = []
    for kernel, (compile_tile, needs, tiles) in KERNELS.items():
        if reasons := needs():
            say(f"{kernel}: {'; '.join(reasons)}")
            continue
        for tile in tiles:
            # Use a new process: cutlass reads its environment when it is imported, and the first
            # compilation in a process takes longer.
            with ProcessPoolExecutor(1, mp_context=get_context("spawn")) as process:
                compiled = process.submit(compile_tile, *tile).result()
            rows.append(read(kernel, tile, compiled))
            say(f"{kernel}: {tile}")
    machine = {
        **{package: version_of(package) for package in PACKAGES},
        "compiled by": ", ".join(sorted({row.toolchain for row in rows})),
        "compiled for": "sm_100a; NVFP4 x NVFP4 to bf16, M at run time",
        "python": platform.python_version(),
        "commit": commit_of(),
        "command": "python -m nvfp4.bench.sm100_static",
    }
    return Results(machine, rows)


def main(
    out: Annotated[Path, typer.Option(help="The folder for the JSON and the table.")] = Path(
        "bench/results"
    ),
) -> None:
    """Compile the sm_100 GEMMs and compare their machine code."""
    results = run(lambda line: print(line, file=sys.stderr))
    table = Table(*HEADINGS)
    for row in results.rows:
        table.add_row(*_cells(row))
    Console().print(table)
    results.write(out)


if __name__ == "__main__":
    typer.run(main)
