"""One operation in every lane, as integer arithmetic and logic have it.

Most values are equal in all lanes, where Python ints are quicker than numpy. So an operation has
two forms.
"""

from collections.abc import Callable
from typing import Any

import numpy as np

from nvfp4.emulator import ptx
from nvfp4.emulator.isa.builder import Builder
from nvfp4.emulator.lanes import DTYPES, spread
from nvfp4.emulator.machine.program import Step

Scalar = Callable[..., int]


_SOURCES = {
    **dict.fromkeys(("mad", "prmt", "shf", "lop3", "bfe"), 3),
    **dict.fromkeys(("not", "neg", "abs", "popc", "clz", "brev", "bfind"), 1),
    "bfi": 4,
}  # fmt: skip
"""The number of operands behind the result, where it is not two."""


def elementwise(
    builder: Builder,
    instruction: ptx.Instruction,
    bits: int,
    scalar: Scalar | None,
    vector: Callable[..., np.ndarray],
    result_bits: int = 0,
    source_bits: tuple[int, ...] = (),
) -> Step:
    """Make a step that puts f(sources) into the result.

    `scalar` takes and returns unsigned ints, and its result is wrapped afterwards. `vector` takes
    arrays with the bits of the sources and returns one with the bits of the result.
    """
    result_bits = result_bits or bits
    into, *operands = instruction.operands
    if len(operands) != _SOURCES.get(instruction.opcode, 2):
        raise ValueError(f"{len(operands)} operands behind the result")
    widths = source_bits or (bits,) * len(operands)
    slots = [builder.source(o, n) for o, n in zip(operands, widths, strict=True)]
    put = builder.put(into, result_bits)
    wrap = (1 << result_bits) - 1
    # A register may be wider than the operation, which then ignores its upper bits.
    narrow = [builder.bits[s] > n for s, n in zip(slots, widths, strict=True)]
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
        elif all(
            v.__class__ is int for v in values
        ):  # there is no form for ints, but one lane is enough
            one = vector(*(np.array([v], DTYPES[n]) for v, n in zip(values, widths, strict=True)))
            put(warp, int(one[0]))
        else:
            put(warp, vector(*(spread(v, n) for v, n in zip(values, widths, strict=True))))

    return step
