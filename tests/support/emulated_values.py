"""Operands for single emulated instructions, and their results.

Where values are the same in all lanes the emulator computes with Python ints, elsewhere with arrays
of lanes; `each` runs an instruction both ways.
"""

import math
from fractions import Fraction

import numpy as np
import torch
from emulated_ptx import (
    STORE,
    run,
)
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

operands = settings(max_examples=12, deadline=None, derandomize=True, database=None)
ALL = 0xFFFFFFFF
NAMES = {8: "h", 16: "h", 32: "r", 64: "d"}


def unsigned(array: np.ndarray) -> np.ndarray:
    return array.view(f"u{array.itemsize}")


def tensor(array: np.ndarray) -> torch.Tensor:
    """Its bytes, where torch's allocator aligns them."""
    return torch.from_numpy(np.ascontiguousarray(array).view(np.uint8)).clone()


def each(instruction: str, result: str, *values: np.ndarray) -> np.ndarray:
    """An instruction's results for 32 sets of operands, once in 32 lanes and once in 32 copies of
    the instruction, where all lanes have the same operands. `{0}` is its result, `{1}` ... its
    operands, of the arrays' sizes; `result`: the dtype that it is read as.
    """
    sizes = [np.dtype(result).itemsize, *(v.itemsize for v in values)]
    names = [f"%{NAMES[8 * size]}{i}" for i, size in enumerate(sizes)]
    done = []
    for copies in (1, 32):
        thread, body = "%t" if copies == 1 else "0", ""
        for i, size in enumerate(sizes):
            where = f"%v{i}" if i else "%out"
            body += f"mul.wide.u32 %d{20 + i}, {thread}, {size}; add.s64 %d{20 + i}, %d{20 + i}, "
            body += f"{where};\n"
        for copy in range(copies):
            for i, size in enumerate(sizes[1:], 1):
                body += f"ld.global.b{8 * size} {names[i]}, [%d{20 + i}+{copy * size}];\n"
            body += instruction.format(*names) + "\n"
            body += f"st.global.b{8 * sizes[0]} [%d20+{copy * sizes[0]}], {names[0]};\n"
        memory = {"out": torch.empty(32 * sizes[0], dtype=torch.uint8)}
        memory |= {f"v{i}": tensor(v) for i, v in enumerate(values, 1)}
        run(body, memory, outputs="out")
        done.append(memory["out"].numpy())
    np.testing.assert_array_equal(done[0], done[1], "lanes and copies")
    return done[0].view(result)


def ints(bits: int) -> st.SearchStrategy[np.ndarray]:
    edges = [0, 1, 2, 3, 31, 32, 33, 255, (1 << bits - 1) - 1, 1 << bits - 1, (1 << bits) - 1]
    element = st.integers(0, (1 << bits) - 1) | st.sampled_from([e % (1 << bits) for e in edges])
    return arrays(f"u{bits // 8}", 32, elements=element, fill=st.nothing())


def floats(bits: int) -> st.SearchStrategy[np.ndarray]:
    return ints(bits).map(lambda a: a.view(f"f{bits // 8}"))


def s(value: int, bits: int) -> int:
    return value - (1 << bits) if value >> bits - 1 else value


def truncated(a: int, b: int) -> int:
    return math.trunc(Fraction(a, b))


def in_lanes(body: str, lanes: int = 32, **options) -> list[int]:
    """%r0 of each thread after `body`."""
    out = torch.full((lanes,), -1, dtype=torch.int32)
    run(body + STORE, {"out": out}, block=lanes, **options)
    return [v & ALL for v in out.tolist()]


def across(instruction: str, result: str, *values: np.ndarray) -> np.ndarray:
    """An instruction's results for a whole domain of operands, a thread for each; as `each` else.
    The arrays have a multiple of 256 elements.
    """
    sizes = [np.dtype(result).itemsize, *(v.itemsize for v in values)]
    names = [f"%{NAMES[8 * size]}{i}" for i, size in enumerate(sizes)]
    body = "mov.u32 %r60,%ctaid.x; mad.lo.u32 %r60,%r60,256,%t;\n"
    for i, size in enumerate(sizes):
        where = f"%v{i}" if i else "%out"
        body += f"mul.wide.u32 %d{20 + i},%r60,{size}; add.s64 %d{20 + i},%d{20 + i},{where};\n"
    for i, size in enumerate(sizes[1:], 1):
        body += f"ld.global.b{8 * size} {names[i]}, [%d{20 + i}];\n"
    body += instruction.format(*names) + f"\nst.global.b{8 * sizes[0]} [%d20], {names[0]};\n"
    memory = {"out": torch.empty(len(values[0]) * sizes[0], dtype=torch.uint8)}
    memory |= {f"v{i}": tensor(v) for i, v in enumerate(values, 1)}
    run(body, memory, outputs="out", block=256, grid=(len(values[0]) // 256, 1, 1))
    return memory["out"].numpy().view(result)
