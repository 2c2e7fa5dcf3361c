"""Compile every Triton kernel for one architecture; print the PTX instructions, the bytes of stack
of a thread (what spills), and of Hopper's pipelines the slots that are given back in their loops,
all and too early, as JSON.

    python tests/support/compile_triton.py SM

A program of its own, since Triton decides once a process whether it compiles or interprets.
"""

import collections
import itertools
import json
import os
import re
import sys
from collections.abc import Iterable, Iterator

os.environ["TRITON_INTERPRET"] = "0"

import torch

from nvfp4.backends.triton import (
    dequantize,
    glu_quantize,
    grouped_mm,
    linear,
    mm,
    moe_combine,
    moe_dispatch,
    quantize,
    quantize_dynamic,
    route,
    weight_only_linear,
)
from nvfp4.backends.triton.gemm.config import COST, GROUPED
from nvfp4.backends.triton.runtime.ahead import compile_launch
from nvfp4.backends.triton.runtime.architecture import multiplies_nvfp4
from nvfp4.backends.triton.runtime.launch import Launch
from nvfp4.bench.cubin import stack_bytes
from nvfp4.calls import (
    Dequantize,
    Dispatched,
    GluQuantize,
    GroupedMm,
    Linear,
    Mm,
    MoeCombine,
    MoeDispatch,
    Packed,
    Quantize,
    Quantized,
    QuantizeDynamic,
)
from nvfp4.spec.format import FLOAT_DTYPES, SCALE_DTYPE, SCALE_LAYOUTS
from nvfp4.spec.glu import ACTIVATIONS
from nvfp4.spec.grouped import grouped_scales_shape
from nvfp4.spec.swizzle import scales_shape

SHARED_MEMORY = {80: 163, 86: 99, 89: 99, 90: 227, 100: 227, 103: 227, 110: 227, 120: 99, 121: 99}
SHARED_MEMORY = {sm: kib * 1024 for sm, kib in SHARED_MEMORY.items()}
"""What one block may ask for (CUDA C++ programming guide, compute capabilities)."""

TWINS = {110: 100, 121: 120}
"""Architectures that compile what another does, tile for tile: the smallest and largest launches of
each kernel show that it can be assembled for them.
"""


def _meta(*shape: int, dtype: torch.dtype = torch.float32) -> torch.Tensor:
    return torch.empty(shape, dtype=dtype, device="meta")


def _quantizers(sm: int) -> Iterator[tuple[str, Launch]]:
    m, k = 300, 7168
    p, data = _meta(1), _meta(m, k // 2, dtype=torch.uint8)
    for dtype, layout in zip(FLOAT_DTYPES, itertools.cycle(SCALE_LAYOUTS)):
        x, gate_up = _meta(m, k, dtype=dtype), _meta(m, 2 * k, dtype=dtype)
        packed = Packed(data, _scales(m, k, layout))
        yield "quantize", quantize.plan(Quantize(x, p, layout), packed, sm)
        dynamic = QuantizeDynamic(x, layout), Quantized(*packed, _meta(m))
        yield "quantize_dynamic", quantize_dynamic.plan(*dynamic, sm)
        glu = GluQuantize(gate_up, p, None, 7.0, layout, "silu")
        yield "glu_quantize", glu_quantize.plan(glu, packed, sm)
        yield "dequantize", dequantize.plan(Dequantize(*packed, p, None, layout), x, sm)
    yield "row_scales", quantize_dynamic.plan_row_scales(_meta(3, 100_000), _meta(3))


def _gemms(sm: int) -> Iterator[tuple[str, Launch]]:
    def operand(rows: int, k: int) -> tuple[torch.Tensor, torch.Tensor]:
        return _meta(rows, k // 2, dtype=torch.uint8), _scales(rows, k)

    n, alpha = 6144, _meta(1, 2)
    sizes = [(1, 576), (12, 576), (24, 7168), (64, 576), (300, 7168), (4096, 7168)]
    for (m, k), dtype, bare in zip(
        sizes, itertools.cycle(FLOAT_DTYPES), itertools.cycle((1, 0, 0))
    ):
        (a, a_scales), (b, b_scales) = operand(m, k), operand(n, k)
        out = _meta(m, n, dtype=dtype)
        full = (_meta(m), _meta(n, dtype=torch.bfloat16))
        for row_scale, bias in [full, (None, None)][: 1 + bare]:
            call = Mm(a, b, a_scales, b_scales, alpha, row_scale, bias)
            for launch in mm.plan(call, out, sm):
                yield "mm", launch
        x, p = _meta(m, k, dtype=dtype), _meta(2)
        for launch in weight_only_linear.plan(Linear(x, b, b_scales, p), out, sm):
            yield "weight_only_linear", launch
        if not multiplies_nvfp4(sm):
            for x_p, bias in [(_meta(1), _meta(n)), (None, None)][: 1 + bare]:
                for launch in linear.plan(Linear(x, b, b_scales, p, x_p, bias), out, sm):
                    yield "linear", launch


def _hopper_tiles(sm: int) -> Iterator[tuple[str, Launch]]:
    """The GEMM by each of Hopper's tiles."""
    m, n, k = 4096, 6144, 7168
    (a, a_scales), (b, b_scales) = (
        (_meta(rows, k // 2, dtype=torch.uint8), _meta(rows, k // 16, dtype=SCALE_DTYPE))
        for rows in (m, n)
    )
    call = Mm(a, b, a_scales, b_scales, _meta(1, 2), _meta(m), _meta(n))
    out = _meta(m, n, dtype=torch.bfloat16)
    for config, split in itertools.product({*COST, *GROUPED.values()}, (False, True)):
        tile = config._replace(stream_k=split)
        yield "mm", mm.plan(call, out, sm, tile)[-1]


def _experts(sm: int) -> Iterator[tuple[str, Launch]]:
    """The kernels of a mixture of experts, for few tokens and for many, each part of a launch."""
    bytes_, ints = torch.uint8, torch.int32
    experts, hidden, intermediate = 160, 1536, 704
    offsets, alpha = _meta(experts + 1, dtype=ints), _meta(experts, 2)
    forms = zip((1, 300, 20_000), FLOAT_DTYPES, itertools.cycle(ACTIVATIONS))
    for tokens, dtype, activation in forms:
        rows, top_k = 8 * tokens, 8
        ids = _meta(tokens, top_k, dtype=ints if tokens == 1 else torch.int64)
        positions, x = _meta(tokens, top_k, dtype=ints), _meta(tokens, hidden, dtype=dtype)
        for launch in route.plan(ids, 32, offsets, positions):
            yield "route", launch
        a, a_scales = _meta(rows, hidden // 2, dtype=bytes_), _grouped(rows, experts, hidden)
        for p in (None, _meta(1)):
            outputs = Dispatched(a, a_scales, _meta(rows), offsets, positions)
            dispatch = MoeDispatch(x, ids, experts, p, 32)
            yield "moe_dispatch", moe_dispatch.plan(dispatch, outputs, sm)
        b = _meta(experts, 2 * intermediate, hidden // 2, dtype=bytes_)
        scales = scales_shape((b.shape[1], hidden), "swizzled")
        b_scales = _meta(experts, *scales, dtype=SCALE_DTYPE)
        gate_up = _meta(rows, b.shape[1], dtype=dtype)
        for row_scale, bias in [(None, None), (_meta(rows), _meta(experts, b.shape[1]))]:
            operands = (a, b, a_scales, b_scales, alpha, offsets, row_scale, bias)
            call = GroupedMm(*operands, expected_rows=rows)
            for launch in grouped_mm.plan(call, gate_up, sm):
                yield "grouped_mm", launch
        h_scales = _grouped(rows, experts, intermediate)
        h = Quantized(_meta(rows, intermediate // 2, dtype=bytes_), h_scales, _meta(rows))
        for p, limit in [(None, None), (_meta(1), 7.0), (_meta(experts), 7.0)]:
            glu = GluQuantize(gate_up, p, offsets, limit, "swizzled", activation)
            yield "glu_quantize", glu_quantize.plan(glu, h, sm)
        y = _meta(rows, hidden, dtype=dtype)
        yield "moe_combine", moe_combine.plan(MoeCombine(y, _meta(tokens, top_k), positions), x)
    limited = GluQuantize(gate_up, swiglu_limit=7.0)
    yield "glu_quantize", glu_quantize.plan_row_scales(limited, _meta(rows))


def _ends(launches: Iterable[tuple[str, Launch]]) -> list[tuple[str, Launch]]:
    """The first launch and the last of each kernel: for few tokens and for many."""
    found: dict[tuple[str, object], list[Launch]] = {}
    for name, launch in launches:
        found.setdefault((name, launch.kernel), []).append(launch)
    return [(name, own[i]) for (name, _), own in found.items() for i in {0, len(own) - 1}]


def _grouped(rows: int, experts: int, k: int) -> torch.Tensor:
    return _meta(*grouped_scales_shape(rows, experts, k), dtype=SCALE_DTYPE)


def _scales(rows: int, k: int, layout: str = "swizzled") -> torch.Tensor:
    return _meta(*scales_shape((rows, k), layout), dtype=SCALE_DTYPE)


def _instructions(ptx: str) -> Iterator[str]:
    """Their names; "fma exact" where a product by a power of two leaves one rounding, the sum's."""
    for name, operands in re.findall(r"^\s*(?:@!?%p\d+ )?([a-z][\w.:]+)(.*)", ptx, re.M):
        factor = re.search(r", 0f([0-9A-F]{8}), ", operands)
        exact = name == "fma.rn.f32" and factor and int(factor[1], 16) & 0x7FFFFF == 0
        yield "fma exact" if exact else name


def _given_back(sass: str) -> tuple[int, int]:
    """How often a slot is given back by who has read it to registers; how often while it may still
    be on its way there, so that a copy ahead overwrites it: a barrier for threads does not wait for
    that, and arriving at one for copies does not either.
    """
    slots, early, reading = 0, 0, False
    for name in re.findall(r"(LDSM|FENCE\.VIEW\.ASYNC|HGMMA|SYNCS\.ARRIVE)", sass):
        if name == "SYNCS.ARRIVE":
            early += reading
        else:
            slots += name == "LDSM" and not reading
            reading = name == "LDSM"
    return slots, early


def main(sm: int) -> None:
    found: dict[str, collections.Counter[str]] = collections.defaultdict(collections.Counter)
    stack: dict[str, int] = collections.defaultdict(int)
    slots, early = 0, 0
    tiles = _hopper_tiles(sm) if sm == 90 else ()
    launches = itertools.chain(_quantizers(sm), _gemms(sm), tiles, _experts(sm))
    for name, launch in _ends(launches) if sm in TWINS else launches:
        compiled = compile_launch(launch, sm)
        assert compiled.asm["cubin"]
        assert compiled.metadata.shared <= SHARED_MEMORY[sm], (name, compiled.metadata.shared)
        spilled, per_sm = stack_bytes(compiled.asm["cubin"]), launch.constants.get("PER_SM", 1)
        if per_sm > 1:
            # So many programs fit into an SM, each with 1 KiB's rent. What a thread knows of its
            # place before the roles part, up to eight words, ptxas 13 keeps in memory and reads
            # outside the loops that multiply: no sums, of which such a tile has 32 a thread.
            together = per_sm * (compiled.metadata.shared + 1024)
            assert together <= 228 * 1024, (name, launch.constants, together)
            spilled = max(0, spilled - 32)
        if "B_STAGES" in launch.constants:
            read, too_early = _given_back(compiled.asm["sass"])
            assert read, launch.constants
            slots, early = slots + read, early + too_early
        found[name].update(_instructions(compiled.asm["ptx"]))
        stack[name] = max(stack[name], spilled)
    slots_given_back = {"all": slots, "early": early}
    print(json.dumps({"instructions": found, "stack": stack, "slots": slots_given_back}))


if __name__ == "__main__":
    main(int(sys.argv[1]))
