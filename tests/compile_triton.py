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
from nvfp4.spec.swizzle import scales_shape

SHARED_MEMORY = {80: 163, 86: 99, 89: 99, 90: 227, 100: 227, 103: 227, 120: 99}
SHARED_MEMORY = {sm: kib * 1024 for sm, kib in SHARED_MEMORY.items()}
"""What one block may ask for (CUDA C++ programming guide, compute capabilities)."""


def _meta(*shape: int, dtype: torch.dtype = torch.float32) -> torch.Tensor:
    return torch.empty(shape, dtype=dtype, device="meta")


def _quantizers(sm: int) -> Iterator[tuple[str, Launch]]:
    m, k = 300, 7168
    p, data = _meta(1), _meta(m, k // 2, dtype=torch.uint8)
    for dtype, layout in zip(FLOAT_DTYPES, itertools.cycle(SCALE_LAYOUTS)):
        x, gate_up = _meta(m, k, dtype=dtype), _meta(m, 2 * k, dtype=dtype)
        scales = _meta(*scales_shape((m, k), layout), dtype=torch.uint8)
        yield "quantize", quantize.plan(x, p, layout, data, scales, sm)
        yield "quantize_dynamic", quantize_dynamic.plan(x, layout, data, scales, _meta(m), sm)
        silu_mul = silu_mul_quantize.plan(gate_up, p, 7.0, layout, data, scales, sm)
        yield "silu_mul_quantize", silu_mul
        yield "dequantize", dequantize.plan(data, scales, p, layout, x)
    yield "row_scales", quantize_dynamic.plan_row_scales(_meta(3, 100_000), _meta(3))


def _gemms(sm: int) -> Iterator[tuple[str, Launch]]:
    def operand(rows: int, k: int) -> tuple[torch.Tensor, torch.Tensor]:
        scales = _meta(*scales_shape((rows, k), "swizzled"), dtype=torch.uint8)
        return _meta(rows, k // 2, dtype=torch.uint8), scales

    n, alpha = 6144, _meta(1, 2)
    sizes = [(1, 576), (24, 7168), (64, 576), (300, 7168), (4096, 7168)]
    for (m, k), dtype in zip(sizes, itertools.cycle(FLOAT_DTYPES)):
        (a, a_scales), (b, b_scales) = operand(m, k), operand(n, k)
        out = _meta(m, n, dtype=dtype)
        for row_scale, bias in [(None, None), (_meta(m), _meta(n, dtype=torch.bfloat16))]:
            for launch in mm.plan(a, b, a_scales, b_scales, alpha, row_scale, bias, out, sm):
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
