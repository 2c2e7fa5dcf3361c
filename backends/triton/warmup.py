"""Compiling ahead of the first call: which kernels a workload needs, and making them, in parallel,
for Triton's cache. A cache filled on a machine without a GPU, for the right architecture, serves.

    python -m nvfp4.backends.triton.warmup SM < pickled workloads, and which of their kernels

is one of the processes: a program of its own, which an engine's daemons may start, too.
"""

import functools
import hashlib
import json
import os
import pickle
import queue
import subprocess
import sys
from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from itertools import product
from pathlib import Path
from subprocess import PIPE
from tempfile import TemporaryFile

import torch
import triton
from torch import Tensor

from nvfp4.backends.triton import (
    grouped_mm,
    linear,
    mm,
    quantize,
    quantize_dynamic,
    weight_only_linear,
)
from nvfp4.backends.triton.device.tile_config import LONGEST_ROW
from nvfp4.backends.triton.runtime.architecture import multiplies_nvfp4
from nvfp4.backends.triton.runtime.launch import Launch, hash_all, kind, specialized
from nvfp4.backends.triton.runtime.process import compiling_environment
from nvfp4.backends.workload import Workload
from nvfp4.calls import GroupedMm, Linear, Mm, Packed, Quantize, Quantized, QuantizeDynamic
from nvfp4.spec.format import DATA_DTYPE, SCALE_DTYPE, SWIZZLED, W4A16
from nvfp4.spec.grouped import grouped_scales_shape
from nvfp4.spec.swizzle import scales_shape


def launches_for(workloads: Iterable[Workload], sm: int) -> list[tuple[str, Launch]]:
    """One launch of each kernel that the workloads need, with a name for it."""
    return [found for work in dict.fromkeys(workloads) for found in _launches_of(work, sm)]


@functools.cache
def _launches_of(work: Workload, sm: int) -> list[tuple[str, Launch]]:
    found: dict[tuple[object, ...], tuple[str, Launch]] = {}
    plan = _grouped if work.experts else _linear
    for dtype, m in product(work.dtypes, work.token_counts()):
        for launch in plan(work, m, dtype, sm):
            kinds = tuple(a.dtype if isinstance(a, Tensor) else a is None for a in launch.args)
            made_of = (*launch.constants.items(), *launch.options.items())
            name = f"{launch.kernel.fn.__name__.strip('_')} for {work.n}x{work.k}"
            found.setdefault((launch.kernel.fn, *made_of, *kinds), (name, launch))
    return list(found.values())


def _meta(*shape: int, dtype: torch.dtype = torch.float32) -> Tensor:
    return torch.empty(shape, dtype=dtype, device="meta")


def _linear(work: Workload, m: int, dtype: torch.dtype, sm: int) -> Iterator[Launch]:
    """The launches of nvfp4::linear, or of the ops that it consists of on this architecture."""
    n, k = work.n, work.k
    bias = None if work.bias is None else _meta(n, dtype=work.bias)
    x, weight = _meta(m, k, dtype=dtype), _meta(n, k // 2, dtype=DATA_DTYPE)
    weight_scales = _meta(*scales_shape((n, k), SWIZZLED), dtype=SCALE_DTYPE)
    out = _meta(m, n, dtype=dtype)
    weight_scale, p = _meta(work.segments), _meta(1) if work.calibrated else None
    how = work.scale_rule, work.activation_format
    call = Linear(x, weight, weight_scales, weight_scale, p, bias, *how)
    if work.activation_format == W4A16:
        yield from weight_only_linear.plan(call, out, sm)
        return
    if not multiplies_nvfp4(sm):
        yield from linear.plan(call, out, sm)
        return
    scales = _meta(*scales_shape((m, k), SWIZZLED), dtype=SCALE_DTYPE)
    a = Quantized(_meta(m, k // 2, dtype=DATA_DTYPE), scales, _meta(m) if p is None else p)
    if p is not None:
        static = Quantize(x, p, SWIZZLED, work.scale_rule)
        yield quantize.plan(static, Packed(a.data, a.scales), sm)
    elif k <= LONGEST_ROW:
        yield quantize_dynamic.plan(QuantizeDynamic(x, SWIZZLED, work.scale_rule), a, sm)
    operands = a.data, weight, a.scales, weight_scales, weight_scale[None], a.row_scale
    yield from mm.plan(Mm(*operands, bias), out, sm)


def _grouped(work: Workload, rows: int, dtype: torch.dtype, sm: int) -> Iterator[Launch]:
    """The launches of nvfp4::grouped_mm, for weights of one scale and of two (gate's and up's)."""
    n, k, experts = work.n, work.k, work.experts
    a, b = _meta(rows, k // 2, dtype=DATA_DTYPE), _meta(experts, n, k // 2, dtype=DATA_DTYPE)
    a_scales = _meta(*grouped_scales_shape(rows, experts, k), dtype=SCALE_DTYPE)
    b_scales = _meta(experts, *scales_shape((n, k), SWIZZLED), dtype=SCALE_DTYPE)
    bias = None if work.bias is None else _meta(experts, n, dtype=work.bias)
    offsets, out = _meta(experts + 1, dtype=torch.int32), _meta(rows, n, dtype=dtype)
    for segments in (1, 2) if n % 2 == 0 else (1,):
        operands = a, b, a_scales, b_scales, _meta(experts, segments), offsets, _meta(rows)
        call = GroupedMm(*operands, bias, expected_rows=rows)
        yield from grouped_mm.plan(call, out, sm)


def _mark(launch: Launch, sm: int) -> Path:
    """A file that is there once the kernel was compiled: Triton's own cache is not asked without
    compiling.
    """
    hash_all()
    kinds = map(kind, launch.args, specialized(launch.kernel))
    made_of = (triton.__version__, sm, launch.kernel.cache_key, launch.constants, launch.options)
    name = hashlib.sha256(repr((*made_of, *kinds)).encode()).hexdigest()
    return Path(triton.knobs.cache.dir) / "nvfp4" / name


def _leave_mark(mark: Path) -> str:
    """Make the file; what to say if that fails: the kernel is compiled, and will be again."""
    try:
        mark.parent.mkdir(parents=True, exist_ok=True)
        mark.touch()
    except OSError as error:
        return f", but it will be again: no mark can be left in {mark.parent} ({error.strerror})"
    return ""


def compile_all(
    launches: Sequence[tuple[str, Launch]], workloads: Sequence[Workload], sm: int, workers: int = 0
) -> Iterator[tuple[str, str]]:
    """Compile the workloads' launches in `workers` processes (0: one per CPU). Yields each as it is
    done, and "cached", "compiled" or what went wrong.
    """
    missing: dict[Path, int] = {}
    """The first launch of each kernel: launches of several shapes may need one kernel."""
    for index, (name, launch) in enumerate(launches):
        mark = _mark(launch, sm)
        if mark in missing or os.path.exists(mark):  # a folder that cannot be read has no mark
            yield name, "cached"
        else:
            missing[mark] = index
    indices = list(missing.values())
    left = min(workers or os.cpu_count() or 1, len(missing))
    done: queue.SimpleQueue[tuple[str, str] | None] = queue.SimpleQueue()
    with ThreadPoolExecutor(left or 1) as pool:
        for first in range(left):
            pool.submit(_run_share, sm, workloads, indices[first::left], done)
        while left:
            outcome = done.get()
            if outcome is None:
                left -= 1
            else:
                yield outcome


def _run_share(
    sm: int,
    workloads: Sequence[Workload],
    share: Sequence[int],
    done: "queue.SimpleQueue[tuple[str, str] | None]",
) -> None:
    """One process, and what it says of each kernel; None at its end."""
    command = [sys.executable, "-m", __name__, str(sm)]
    try:
        with TemporaryFile() as errors:
            with subprocess.Popen(
                command, env=compiling_environment(), stdin=PIPE, stdout=PIPE, stderr=errors
            ) as process:
                assert process.stdin is not None and process.stdout is not None
                process.stdin.write(pickle.dumps((list(workloads), list(share))))
                process.stdin.close()
                for line in process.stdout:
                    name, outcome = json.loads(line)
                    done.put((name, outcome))
            if process.returncode:
                errors.seek(0)
                said = errors.read().decode(errors="replace").strip().splitlines()
                raise RuntimeError(said[-1] if said else f"exit status {process.returncode}")
    except Exception as error:  # told as a kernel's is, not lost in a thread
        done.put((f"{len(share)} kernels", f"failed: {error}"))
    finally:
        done.put(None)


def main(sm: int) -> None:
    from nvfp4.backends.triton.runtime.ahead import compile_launch

    answers = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)  # whatever else is printed, by libraries too, is no answer
    workloads, share = pickle.load(sys.stdin.buffer)
    launches = launches_for(workloads, sm)
    for index in share:
        name, launch = launches[index]
        try:
            compile_launch(launch, sm)
            outcome = "compiled" + _leave_mark(_mark(launch, sm))
        except Exception as error:
            outcome = f"failed: {error}"
        answers.write(json.dumps([name, outcome]) + "\n")
        answers.flush()


if __name__ == "__main__":
    main(int(sys.argv[1]))
