"""python -m nvfp4.bench.sweep {mm,linear,grouped,quantizers}: time tiles on this GPU.

Its findings are the tables of the Triton backend. GEMM tiles that sum K alike give the same bits:
they can be mixed, and a row's result does not depend on the batch that it came in.
"""

import itertools
import json
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Annotated, Any

import torch
import typer

import nvfp4
from nvfp4.backends.target import target_of
from nvfp4.backends.triton import (
    glu_quantize,
    grouped_mm,
    mm,
    quantize,
    quantize_dynamic,
)
from nvfp4.backends.triton.device.tile_config import Tile
from nvfp4.backends.triton.gemm.config import COST, K_GROUP, HopperConfig, MmConfig
from nvfp4.backends.triton.gemm.tuned import Config, machine
from nvfp4.calls import (
    GluQuantize,
    GroupedMm,
    Mm,
    Quantize,
    Quantized,
    QuantizeDynamic,
)
from nvfp4.calls.outputs import empty_packed
from nvfp4.spec.swizzle import swizzled_shape
from nvfp4.tuning.linear import linear_configs, linear_problem
from nvfp4.tuning.sweep import DEVICE, WEIGHT_COPIES, Planned, Plans, Problem, sweep

GEMMS = {"mm": "mm", "grouped": "grouped_mm", "linear": "linear"}
"""The op of each kind of GEMM."""


def _mm_problem(m: int, n: int, k: int, copies: int) -> Callable[[Config], Plans]:
    torch.manual_seed(0)
    x = nvfp4.quantize_dynamic(torch.randn(m, k, device=DEVICE, dtype=torch.bfloat16))
    w = nvfp4.quantize_weight(torch.randn(n, k, device=DEVICE, dtype=torch.bfloat16))
    weights = [(w.data.clone(), w.scales.clone()) for _ in range(copies)]
    sm = target_of(x.device).sm

    def plans_of(config: Config) -> Plans:
        alpha = w.global_scale.view(1, 1)

        def plan(data: torch.Tensor, scales: torch.Tensor) -> Planned:
            out = torch.empty(m, n, dtype=torch.bfloat16, device=DEVICE)
            call = Mm(x.data, data, x.scales, scales, alpha, x.global_scale)
            return out, mm.plan(call, out, sm, config)

        return [partial(plan, data, scales) for data, scales in weights]

    return plans_of


def _grouped_problem(
    rows: int, experts: int, n: int, k: int, copies: int
) -> Callable[[Config], Plans]:
    """Rows spread over the experts at random.

    All experts' weights together exceed the cache, so one copy of them is made, whatever `copies`.
    """
    torch.manual_seed(0)
    x = torch.randn(rows, k, device=DEVICE, dtype=torch.bfloat16)
    ids = torch.randint(experts, (rows, 1), device=DEVICE)
    a, _ = nvfp4.moe_dispatch(x, ids, experts)
    # Weights in floats would not fit beside each other, so codes and scales (1/4 to 4) are random.
    weights = torch.randint(0, 256, (experts, n, k // 2), dtype=torch.uint8, device=DEVICE)
    weight_scales = torch.randint(
        0x28, 0x49, (experts, *swizzled_shape(n, k)), dtype=torch.uint8, device=DEVICE
    )
    alpha = torch.ones(experts, 1, device=DEVICE)
    sm = target_of(x.device).sm

    def plans_of(config: Config) -> Plans:
        def plan() -> Planned:
            out = torch.zeros(rows, n, dtype=torch.bfloat16, device=DEVICE)
            operands = (a.data, weights, a.scales, weight_scales, alpha, a.offsets, a.row_scale)
            call = GroupedMm(*operands, expected_rows=rows)
            return out, grouped_mm.plan(call, out, sm, config)

        return [plan]

    return plans_of


def _quantizer_problem(op: str, m: int, k: int, copies: int) -> Callable[[Tile], Plans]:
    torch.manual_seed(0)
    width = 2 * k if op == "silu_mul_quantize" else k
    xs = [torch.randn(m, width, device=DEVICE, dtype=torch.bfloat16) for _ in range(copies)]
    p, sm = torch.full((1,), 1e-3, device=DEVICE), target_of(xs[0].device).sm

    def plans_of(tile: Tile) -> Plans:
        def plan(x: torch.Tensor) -> Planned:
            out = empty_packed(x, (m,), k, "swizzled")
            if op == "quantize":
                launch = quantize.plan(Quantize(x, p), out, sm, tile)
            elif op == "quantize_dynamic":
                rows = torch.empty(m, device=DEVICE)
                quantized = Quantized(*out, rows)
                launch = quantize_dynamic.plan(QuantizeDynamic(x), quantized, sm, tile)
            else:
                launch = glu_quantize.plan(GluQuantize(x, p), out, sm, tile)
            return out.data, [launch]

        return [partial(plan, x) for x in xs]

    return plans_of


def _mm_configs(m: int) -> Iterator[MmConfig]:
    tiles = itertools.product((16, 32, 64, 128, 256), (64, 128, 256), (128, 256), (4, 8), (2, 3, 4))
    for bm, bn, bk, warps, stages in tiles:
        accumulators = bm * bn // (warps * 32)  # of a thread
        if bm <= max(32, m) and bm * bn <= 128 * 256 and 4 <= accumulators <= 128:
            yield MmConfig(bm, bn, bk, warps, stages)


def _grouped_configs(k: int) -> Iterator[Config]:
    if target_of(DEVICE).sm == 90 and k % K_GROUP == 0:
        yield from COST
    for bm, bn, bk, warps, stages in (
        (8, 64, 256, 4, 4), (8, 32, 256, 2, 4), (16, 64, 256, 4, 4), (16, 32, 256, 2, 3),
        (32, 64, 256, 4, 3), (64, 64, 256, 4, 3), (64, 128, 128, 4, 3), (64, 128, 256, 8, 3),
        (128, 128, 128, 8, 3), (128, 128, 128, 4, 3),
        (256, 128, 128, 8, 3),
    ):  # fmt: skip
        yield MmConfig(bm, bn, bk, warps, stages)


def _tiles(op: str, k: int) -> Iterator[Tile]:
    if op == "quantize_dynamic":
        columns = 1 << (k - 1).bit_length()
        for rows, warps in itertools.product((1, 2), (4, 8, 16, 32)):
            yield Tile(rows, columns, warps)
        return
    for columns, elements, warps in itertools.product(
        (64, 128, 256, 512, 1024), (1024, 2048, 4096, 8192), (1, 2, 4, 8)
    ):
        if (
            elements // columns <= 128
            and elements >= columns
            and 8 <= elements // (32 * warps) <= 64
        ):
            yield Tile(elements // columns, columns, warps)


def _configs(kind: str, op: str, shape: tuple[int, ...]) -> Iterator[Any]:
    if kind == "grouped":
        return _grouped_configs(shape[3])
    if kind == "linear":
        return linear_configs(shape[0], shape[2])
    return _mm_configs(shape[0]) if kind == "mm" else _tiles(op, shape[1])


def tiles_from(text: str) -> list[Config]:
    """Read tiles from JSON: a list of lists of the fields of HopperConfig or MmConfig.

    A list is a HopperConfig if it has three fields, or if its fourth is true or false.
    """
    return [
        HopperConfig(*fields)
        if len(fields) == 3 or isinstance(fields[3], bool)
        else MmConfig(*fields)
        for fields in json.loads(text)
    ]


def _problem(kind: str, op: str, shape: tuple[int, ...]) -> Problem:
    if kind in GEMMS:
        of_kind: dict[str, Callable[..., Any]] = {
            "mm": _mm_problem,
            "linear": linear_problem,
            "grouped": _grouped_problem,
        }
        return partial(of_kind[kind], *shape)
    return partial(_quantizer_problem, op, *shape)


def main(
    kind: str,
    shapes: Annotated[
        str,
        typer.Option(
            help="MxNxK,… for mm and linear; RxExNxK,… for grouped; MxK,… for quantizers."
        ),
    ],
    tiles: Annotated[
        str,
        typer.Option(help="GEMM tiles instead of the usual, JSON: [[16, 2, 2, true, 2], …]."),
    ] = "",
    out: Path | None = None,
    show: int = 6,
) -> None:
    """Time every tile of a kind of kernel, and print the fastest of each shape."""
    if tiles and kind not in GEMMS:
        raise typer.BadParameter(
            f"needs one of {', '.join(GEMMS)}, got {kind}", param_hint="--tiles"
        )
    quantizers = ("quantize", "quantize_dynamic", "silu_mul_quantize")
    ops = (GEMMS[kind],) if kind in GEMMS else quantizers
    found: dict[str, Any] = {}
    for text, op in itertools.product(shapes.split(","), ops):
        shape = tuple(map(int, text.split("x")))
        configs = tiles_from(tiles) if tiles else list(_configs(kind, op, shape))
        copies = WEIGHT_COPIES if kind in ("mm", "linear") else 2
        rows = sweep(_problem(kind, op, shape), configs, copies, exact=kind not in GEMMS)
        found[f"{op} {text}"] = rows
        print(f"{op} {text}: {len(rows)} tiles", flush=True)
        for row in rows[:show]:
            print(f"  {row.get('microseconds', 0):8.1f} us {row}", flush=True)
        for row in rows:
            if not row.get("right", True):
                print(f"  WRONG {row}", flush=True)
    if out is not None:
        about = {
            "machine": machine(DEVICE),
            "command": f"python -m nvfp4.bench.sweep {kind} --shapes {shapes}"
            + (f" --tiles '{tiles}'" if tiles else ""),
        }
        out.write_text(json.dumps(about | found) + "\n")


if __name__ == "__main__":
    typer.run(main)
