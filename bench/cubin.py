"""What a compiled kernel is made of: its registers, its SASS, its loops; read without a GPU.

The disassemblers are those inside Triton's package; they read sm_100a. How a loop's instructions
are counted, control_flow.py says.
"""

import json
import re
import subprocess
import tempfile
from functools import lru_cache
from importlib.util import find_spec
from pathlib import Path
from typing import Any, NamedTuple

from nvfp4.bench.control_flow import Instruction, Loop, loops

MMA = "UTCOMMA"
"""SASS for tcgen05.mma.kind::mxf4nvf4 and mxf4, block-scaled; K = 64."""

TMA_LOAD = "UTMALDG"
TMEM_LOAD = "LDTM"

_PER_REPEAT = {"16dp128bit": 2, "16dp256bit": 4, "16dp32bit_t0_t15": 0.5, "16dp32bit_t16_t31": 0.5}
"""Registers a thread gets for each of LDTM's repeats (.x1, .x2, …) by shape, where not one. The
16x32bx2 shape is two instructions, each for half of the threads.
"""


class Resources(NamedTuple):
    """The resources that a kernel needs.

    registers: of a thread.
    static_shared: bytes of shared memory of a block, with the 1,024 that CUDA keeps on sm_90 and
        later, without the dynamic ones, which the launch asks for.
    stack, local: bytes of a thread.
    spill_stores, spill_loads: STL and LDL in the SASS, for spills or an array indexed at run time.
    """

    registers: int
    static_shared: int
    stack: int
    local: int
    spill_stores: int
    spill_loads: int


class Step(NamedTuple):
    """The instructions for K = 256, and how many such steps one pass of `loop` makes."""

    sass: float
    steps: float
    loop: Loop


class Epilogue(NamedTuple):
    """SASS instructions of one thread for an accumulator element.

    loop: one pass of the innermost loop around tcgen05.ld, divided by the elements that it loads.
    tile: one pass of the loop over tiles, with all passes of the inner loop, divided by the tile's
        elements. None in a kernel of one tile a block.
    The two are equal if the subtiles are unrolled.
    """

    loop: float
    tile: float | None


def _run(tool: str, cubin: bytes, *options: str) -> str:
    triton = find_spec("triton")
    if triton is None or triton.origin is None:
        raise RuntimeError(f"{tool}: needs the package triton, got none")
    path = Path(triton.origin).parent / "backends" / "nvidia" / "bin" / tool
    with tempfile.NamedTemporaryFile(suffix=".cubin") as file:
        file.write(cubin)
        file.flush()
        done = subprocess.run([path, *options, file.name], capture_output=True, text=True)
    if done.returncode:
        raise ValueError(f"{tool}: needs a cubin, got {done.stderr.strip()}")
    return done.stdout


@lru_cache(maxsize=64)
def _disassemble(cubin: bytes) -> tuple[dict[str, Any], dict[str, list[Instruction]]]:
    """The file's header; and by kernel its instructions, with those of the functions that it calls
    (`$…`, in its section) after its own.
    """
    header, functions = json.loads(_run("nvdisasm", cubin, "-json"))
    kernels: dict[str, list[Instruction]] = {}
    name = ""
    for function in functions:
        if not function["function-name"].startswith("$"):
            name = function["function-name"]
        kernels.setdefault(name, []).extend(
            Instruction(
                function["start"] + 16 * index,
                said.get("predicate", ""),
                said["opcode"],
                said.get("operands", ""),
            )
            for index, said in enumerate(function["sass-instructions"])
        )
    return header, kernels


def _pick(names: list[str], kernel: str) -> str:
    found = [name for name in names if kernel in name]
    if len(found) != 1:
        raise ValueError(
            f"kernel: needs the one of {names} that {kernel!r} is in, got {len(found)}"
        )
    return found[0]


def toolchain(cubin: bytes) -> str:
    """The compiler of a cubin: "ptxas, Cuda compilation tools, release 12.9, V12.9.83"."""
    note = _disassemble(cubin)[0][".note.nv.tkinfo"]
    return f"{note['tki_toolName']}, {note['tki_toolVersion']}"


def sass(cubin: bytes, kernel: str = "") -> list[Instruction]:
    """A kernel's instructions by address. `kernel`: a part of its name, if there are several."""
    kernels = _disassemble(cubin)[1]
    return kernels[_pick(list(kernels), kernel)]


def stack_bytes(cubin: bytes) -> int:
    """A thread's stack in the kernel that has most of it: what spills, or is indexed at run time.
    Read without disassembling.
    """
    return max(map(int, re.findall(r"STACK:(\d+)", _run("cuobjdump", cubin, "-res-usage"))))


def resources(cubin: bytes, kernel: str = "") -> Resources:
    """A kernel's resources: cuobjdump's, and the spills counted in the SASS."""
    kernels = _disassemble(cubin)[1]
    name = _pick(list(kernels), kernel)
    said = _run("cuobjdump", cubin, "-res-usage")
    line = said[said.index(f"Function {name}:") :].splitlines()[1]
    values = {key: int(value) for key, value in re.findall(r"(REG|STACK|SHARED|LOCAL):(\d+)", line)}
    return Resources(
        registers=values["REG"],
        static_shared=values["SHARED"],
        stack=values["STACK"],
        local=values["LOCAL"],
        spill_stores=sum(i.is_a("STL") for i in kernels[name]),
        spill_loads=sum(i.is_a("LDL") for i in kernels[name]),
    )


def gpu_fences(instructions: list[Instruction]) -> int:
    """How many instructions wait until memory accesses, to global memory too, are performed for the
    GPU: a release or a fence of the scope .cluster is one of these, but for sync_restrict's.
    """
    return sum(i.is_a("MEMBAR") and i.opcode.endswith((".GPU", ".SYS")) for i in instructions)


def early_loads(instructions: list[Instruction]) -> int:
    """How many TMA loads stand before the TMA warp waits for the kernel before it (ACQBULK)."""
    opcodes = [i.opcode for i in instructions]
    loads = [at for at, i in enumerate(instructions) if i.is_a(TMA_LOAD)]
    waits = [at for at, opcode in enumerate(opcodes) if opcode == "ACQBULK" and at < loads[-1]]
    return sum(at < waits[-1] for at in loads) if waits else 0


def mma_loop(instructions: list[Instruction], mmas_per_step: int = 4) -> Step:
    """The MMA warp's loop over K: the innermost around UTCOMMA; of several (a rest after an
    unrolled loop), the one with most. One UTCOMMA has K = 64; a kernel that splits a tile's M or N
    over several says how many make K = 256.
    """
    loop = _busiest(loops(instructions), MMA)
    steps = loop.count(MMA) / mmas_per_step
    return Step(len(loop.instructions) / steps, steps, loop)


def tma_loop(instructions: list[Instruction], stage_k: int = 256) -> Step:
    """The TMA warp's loop over K: the innermost around UTMALDG.

    A step is counted by its arrival with expect_tx; each is for `stage_k` values of K. How many
    loads fill a stage depends on the kernel: a box has at most 256 rows, the scales may share a
    load. But a phase of a full barrier has one expect_tx.
    """
    loop = _busiest(loops(instructions), TMA_LOAD)
    # What it adds to arrivals and bytes ends the opcode unless it is one and a register's (A1TR):
    # A0TR for expect_tx alone, A1T0 and ART0 for an arrival without bytes.
    arrives = [i for i in loop.instructions if i.is_a("SYNCS.ARRIVE.TRANS64")]
    arrivals = sum(not i.opcode.endswith("T0") for i in arrives)
    if not arrivals:
        raise ValueError("tma_loop: needs an arrival with expect_tx beside the loads, got none")
    steps = arrivals * stage_k / 256
    return Step(len(loop.instructions) / steps, steps, loop)


def epilogue_per_element(instructions: list[Instruction], elements: int) -> Epilogue:
    """Count the epilogue warps' instructions for an accumulator element.

    `elements` is how many a thread loads for a tile: the tile's N where each of 128 threads has a
    row. The count is of the warp that passes every condition, the one that issues the TMA stores.
    The loop over tiles contains the wait for the accumulator.
    """
    found = loops(instructions)
    inner = _busiest(found, TMEM_LOAD)
    tile = next((loop for loop in found if loop.depth == 0 and inner in _flat(loop)), None)
    if tile is None:
        raise ValueError("epilogue_per_element: tcgen05.ld's loop is not on its tile's longest way")
    per_pass = len(inner.instructions) / _loaded(inner)
    if tile is inner and _loaded(tile) < elements:
        return Epilogue(per_pass, None)
    parts = _flat(tile)[1:]
    subtiles = [part for part in parts if _loaded(part)]
    total: float = len(tile.instructions) + sum(len(p.instructions) for p in parts)
    rest = elements - _loaded(tile)
    if len(subtiles) == 1:
        passes = rest / _loaded(subtiles[0])
        total += (passes - 1) * len(subtiles[0].instructions)
        rest -= int(passes) * _loaded(subtiles[0])
    if rest or len(subtiles) > 1:
        raise ValueError(
            f"elements: needs what the loop over tiles loads, got {elements} where it loads "
            f"{_loaded(tile)} and its inner loops {[_loaded(part) for part in subtiles]} a pass"
        )
    return Epilogue(per_pass, total / elements)


def _flat(loop: Loop) -> list[Loop]:
    return [loop, *(deep for inner in loop.inner for deep in _flat(inner))]


def _busiest(found: list[Loop], opcode: str) -> Loop:
    """The loop with most of these instructions of its own."""
    loop = max(found, key=lambda loop: loop.count(opcode), default=None)
    if loop is None or not loop.count(opcode):
        raise ValueError(f"needs a loop with {opcode}, got none")
    return loop


def _loaded(loop: Loop) -> int:
    """Accumulator elements that a thread loads in a pass, inner loops left out."""
    total = 0.0
    for i in loop.instructions:
        if i.is_a(TMEM_LOAD):
            _, *modifiers = i.opcode.split(".")
            repeats = next((int(m[1:]) for m in modifiers if re.fullmatch(r"x\d+", m)), 1)
            shape = next((_PER_REPEAT[m] for m in modifiers if m in _PER_REPEAT), 1)
            total += repeats * shape * (2 if "PACK16BIT" in modifiers else 1)
    return int(total)
