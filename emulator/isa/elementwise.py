"""What arithmetic instructions share: the same operation in every lane.

Most values are the same in all lanes, and Python ints are quicker than numpy there; so every
operation has two forms.
"""

from collections.abc import Callable
from typing import Any

import numpy as np

from nvfp4.emulator import ptx
from nvfp4.emulator.isa.program import Program, Step
from nvfp4.emulator.lanes import (
    DTYPES,
    spread,
)

Scalar = Callable[..., int]


_SOURCES = {
    **dict.fromkeys(("mad", "prmt", "shf", "lop3", "bfe"), 3),
    **dict.fromkeys(("not", "neg", "abs", "popc", "clz", "brev", "bfind"), 1),
    "bfi": 4,
}  # fmt: skip
"""How many operands an instruction has behind its result, where not two."""


def elementwise(
    program: Program,
    instruction: ptx.Instruction,
    bits: int,
    scalar: Scalar | None,
    vector: Callable[..., np.ndarray],
    result_bits: int = 0,
    source_bits: tuple[int, ...] = (),
) -> Step:
    """result = f(sources). `scalar` takes and gives unsigned ints and need not wrap its result;
    `vector` takes arrays of the sources' bits and gives one of the result's.
    """
    result_bits = result_bits or bits
    into, *operands = instruction.operands
    if len(operands) != _SOURCES.get(instruction.opcode, 2):
        raise ValueError(f"{len(operands)} operands behind the result")
    widths = source_bits or (bits,) * len(operands)
    slots = [program.source(o, n) for o, n in zip(operands, widths, strict=True)]
    put = program.put(into, result_bits)
    wrap = (1 << result_bits) - 1
    # A register may be wider than the operation: then its upper bits do not count.
    narrow = [program.bits[s] > n for s, n in zip(slots, widths, strict=True)]
    if scalar is not None and len(slots) == 2 and not any(narrow):
        a, b = slots
        wide_a, wide_b = widths
        function = scalar

        def two(warp: Any) -> None:
            registers = warp.registers
            x, y = registers[a], registers[b]
            if x.__class__ is int and y.__class__ is int:
                put(warp, function(x, y) & wrap)
            else:
                put(warp, vector(spread(x, wide_a), spread(y, wide_b)))

        return two

    def step(warp: Any) -> None:
        values = [warp.registers[slot] for slot in slots]
        if scalar is not None and all(v.__class__ is int for v in values):
            if any(narrow):
                values = [v & ((1 << n) - 1) for v, n in zip(values, widths, strict=True)]
            put(warp, scalar(*values) & wrap)
        elif all(v.__class__ is int for v in values):  # no int form, but one lane is enough
            one = vector(*(np.array([v], DTYPES[n]) for v, n in zip(values, widths, strict=True)))
            put(warp, int(one[0]))
        else:
            put(warp, vector(*(spread(v, n) for v, n in zip(values, widths, strict=True))))

    return step
