"""Compile every Triton kernel for one architecture; print the PTX instructions as JSON.

    python tests/compile_triton.py SM

A program of its own, since Triton decides once a process whether it compiles or interprets.
"""

import collections
import itertools
import json
import os
import re
import sys
from collections.abc import Iterator

os.environ["TRITON_INTERPRET"] = "0"

import torch

from nvfp4.backends.triton import dequantize, mm, quantize, quantize_dynamic, silu_mul_quantize
from nvfp4.backends.triton.ahead import compile_launch
from nvfp4.backends.triton.launch import Launch
from nvfp4.spec.format import FLOAT_DTYPES, SCALE_LAYOUTS
from nvfp4.spec.swizzle import swizzled_shape

SHARED_MEMORY = {80: 163, 86: 99, 89: 99, 90: 227, 100: 227, 103: 227, 120: 99}
SHARED_MEMORY = {sm: kib * 1024 for sm, kib in SHARED_MEMORY.items()}
"""What one block may ask for (CUDA C++ programming guide, compute capabilities)."""


def _meta(*shape: int, dtype: torch.dtype = torch.float32) -> torch.Tensor:
    return torch.empty(shape, dtype=dtype, device="meta")


def _quantizers(sm: int) -> Iterator[tuple[str, Launch]]:
    for dtype, layout in zip(FLOAT_DTYPES, itertools.cycle(SCALE_LAYOUTS)):
        x, p = _meta(300, 7168, dtype=dtype), _meta(1)
        yield "quantize", quantize.plan(x, p, layout, sm)[-1]
        yield "quantize_dynamic", quantize_dynamic.plan(x, layout, sm)[-1]
        yield "silu_mul_quantize", silu_mul_quantize.plan(x, p, 7.0, layout, sm)[-1]
        data = _meta(300, 3584, dtype=torch.uint8)
        shape = swizzled_shape(300, 7168) if layout == "swizzled" else (300, 448)
        yield (
            "dequantize",
            dequantize.plan(data, _meta(*shape, dtype=torch.uint8), p, dtype, layout)[-1],
        )
    yield "row_scales", quantize_dynamic.plan_row_scales(_meta(3, 100_000))[-1]


def _gemms(sm: int) -> Iterator[tuple[str, Launch]]:
    def operand(rows: int, k: int) -> tuple[torch.Tensor, torch.Tensor]:
        return _meta(rows, k // 2, dtype=torch.uint8), _meta(
            *swizzled_shape(rows, k), dtype=torch.uint8
        )

    for (m, k), dtype in zip(
        [(1, 576), (24, 7168), (64, 576), (300, 7168), (4096, 7168)], itertools.cycle(FLOAT_DTYPES)
    ):
        (a, a_scales), (b, b_scales) = operand(m, k), operand(6144, k)
        for row_scale, bias in [(None, None), (_meta(m), _meta(6144, dtype=torch.bfloat16))]:
            launch = mm.plan(a, b, a_scales, b_scales, _meta(1, 2), row_scale, bias, dtype, sm)[-1]
            yield "mm", launch


def main(sm: int) -> None:
    found: dict[str, collections.Counter[str]] = collections.defaultdict(collections.Counter)
    for name, launch in itertools.chain(_quantizers(sm), _gemms(sm)):
        compiled = compile_launch(launch, sm)
        assert compiled.asm["cubin"]
        assert compiled.metadata.shared <= SHARED_MEMORY[sm], (name, compiled.metadata.shared)
        found[name].update(
            re.findall(r"^\s*(?:@!?%p\d+ )?([a-z][\w.:]+)", compiled.asm["ptx"], re.M)
        )
    print(json.dumps({name: dict(counts) for name, counts in found.items()}))


if __name__ == "__main__":
    main(int(sys.argv[1]))
