"""Which tiles are fast on this GPU: python -m nvfp4.bench.sweep {mm,quantizers} [--out FILE]

Every tile is compiled (in parallel), checked, and timed beside the others on cold data. A GEMM tile
is also compared bit for bit with the first one: tiles that sum K alike can be mixed without a
row's result depending on the batch it came in. Its findings are the tables of
backends/triton/*_config.py.
"""

import itertools
import json
import os
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from functools import partial
from multiprocessing import get_context
from pathlib import Path
from typing import Annotated, Any

import torch
import typer

import nvfp4
from nvfp4.backends.contract import target_of
from nvfp4.backends.triton import (
    glu_quantize,
    grouped_mm,
    linear,
    mm,
    quantize,
    quantize_dynamic,
)
from nvfp4.backends.triton.device.tile_config import Tile
from nvfp4.backends.triton.gemm.config import COST, K_GROUP, HopperConfig, MmConfig
from nvfp4.backends.triton.gemm.tuned import machine
from nvfp4.backends.triton.runtime.launch import Launch
from nvfp4.bench.cases import furthest
from nvfp4.bench.timing import compare
from nvfp4.calls import (
    GluQuantize,
    GroupedMm,
    Linear,
    Mm,
    Quantize,
    Quantized,
    QuantizeDynamic,
)
from nvfp4.calls.outputs import empty_packed
from nvfp4.spec.swizzle import swizzled_shape

DEVICE = torch.device("cuda" if torch.cuda.is_available() else "cpu")

COPIES = 12 if DEVICE.type == "cuda" else 1
"""Weights rotate: 12 copies of the smallest one swept exceed an H200's 60 MB of L2."""

GEMMS = {"mm": "mm", "grouped": "grouped_mm", "linear": "linear"}
"""By kind: the op."""

TURN = 0.03
"""Seconds a tile's turn: there are many, and what they are compared with is their like."""

Made = tuple[torch.Tensor, Sequence[Launch]]
Makers = list[Callable[[], Made]]
Config = MmConfig | HopperConfig


def _mm_makers(m: int, n: int, k: int, copies: int = COPIES) -> Callable[[Config], Makers]:
    torch.manual_seed(0)
    x = nvfp4.quantize_dynamic(torch.randn(m, k, device=DEVICE, dtype=torch.bfloat16))
    w = nvfp4.quantize_weight(torch.randn(n, k, device=DEVICE, dtype=torch.bfloat16))
    weights = [(w.data.clone(), w.scales.clone()) for _ in range(copies)]
    sm = target_of(x.device).sm

    def makers(config: Config) -> Makers:
        alpha = w.global_scale.view(1, 1)

        def make(data: torch.Tensor, scales: torch.Tensor) -> Made:
            out = torch.empty(m, n, dtype=torch.bfloat16, device=DEVICE)
            call = Mm(x.data, data, x.scales, scales, alpha, x.global_scale)
            return out, mm.plan(call, out, sm, config)

        return [partial(make, data, scales) for data, scales in weights]

    return makers


def _linear_makers(m: int, n: int, k: int, copies: int = COPIES) -> Callable[[Config], Makers]:
    torch.manual_seed(0)
    x = torch.randn(m, k, device=DEVICE, dtype=torch.bfloat16)
    w = nvfp4.quantize_weight(torch.randn(n, k, device=DEVICE, dtype=torch.bfloat16))
    weights = [(w.data.clone(), w.scales.clone()) for _ in range(copies)]
    p, sm = w.global_scale.view(1), target_of(x.device).sm

    def makers(config: Config) -> Makers:
        def make(data: torch.Tensor, scales: torch.Tensor) -> Made:
            out = torch.empty(m, n, dtype=torch.bfloat16, device=DEVICE)
            return out, linear.plan(Linear(x, data, scales, p), out, sm, config)

        return [partial(make, data, scales) for data, scales in weights]

    return makers


def _grouped_makers(
    rows: int, experts: int, n: int, k: int, copies: int = 1
) -> Callable[[Config], Makers]:
    """Rows spread over the experts at random; all their weights exceed the cache by themselves."""
    torch.manual_seed(0)
    x = torch.randn(rows, k, device=DEVICE, dtype=torch.bfloat16)
    ids = torch.randint(experts, (rows, 1), device=DEVICE)
    a, _ = nvfp4.moe_dispatch(x, ids, experts)
    # Any bytes are codes, and these are scales from 1/4 to 4: a worker has no room for floats.
    weights = torch.randint(0, 256, (experts, n, k // 2), dtype=torch.uint8, device=DEVICE)
    weight_scales = torch.randint(
        0x28, 0x49, (experts, *swizzled_shape(n, k)), dtype=torch.uint8, device=DEVICE
    )
    alpha = torch.ones(experts, 1, device=DEVICE)
    sm = target_of(x.device).sm

    def makers(config: Config) -> Makers:
        def make() -> Made:
            out = torch.zeros(rows, n, dtype=torch.bfloat16, device=DEVICE)
            operands = (a.data, weights, a.scales, weight_scales, alpha, a.offsets, a.row_scale)
            call = GroupedMm(*operands, expected_rows=rows)
            return out, grouped_mm.plan(call, out, sm, config)

        return [make]

    return makers


def _quantizer_makers(op: str, m: int, k: int, copies: int = 2) -> Callable[[Tile], Makers]:
    torch.manual_seed(0)
    width = 2 * k if op == "silu_mul_quantize" else k
    xs = [torch.randn(m, width, device=DEVICE, dtype=torch.bfloat16) for _ in range(copies)]
    p, sm = torch.full((1,), 1e-3, device=DEVICE), target_of(xs[0].device).sm

    def makers(tile: Tile) -> Makers:
        def make(x: torch.Tensor) -> Made:
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

        return [partial(make, x) for x in xs]

    return makers


def _mm_configs(m: int) -> Iterator[MmConfig]:
    tiles = itertools.product((16, 32, 64, 128, 256), (64, 128, 256), (128, 256), (4, 8), (2, 3, 4))
    for bm, bn, bk, warps, stages in tiles:
        accumulators = bm * bn // (warps * 32)  # a thread
        if bm <= max(32, m) and bm * bn <= 128 * 256 and 4 <= accumulators <= 128:
            yield MmConfig(bm, bn, bk, warps, stages)


_LINEAR = {
    8: ((8, 64, 256, 4, 3), (8, 64, 256, 4, 4), (8, 32, 256, 2, 4), (8, 128, 256, 4, 3),
        (16, 64, 256, 4, 4), (16, 32, 256, 2, 4)),
    16: ((16, 64, 256, 4, 3), (16, 64, 256, 4, 4), (16, 32, 256, 2, 3), (16, 64, 256, 2, 3),
         (16, 64, 128, 4, 3), (16, 32, 256, 4, 3)),
    32: ((32, 64, 256, 4, 3), (32, 64, 256, 4, 4), (32, 128, 256, 8, 3)),
    64: ((64, 64, 256, 4, 3), (64, 128, 256, 8, 3), (64, 128, 128, 4, 3), (64, 64, 256, 4, 2)),
    256: ((64, 64, 256, 4, 2), (64, 64, 256, 4, 3), (64, 128, 128, 4, 3), (64, 128, 256, 8, 3),
          (128, 64, 128, 4, 3), (128, 64, 256, 8, 3), (128, 128, 128, 8, 3), (128, 128, 128, 4, 3),
          (256, 64, 128, 8, 3), (256, 128, 128, 8, 3)),
    1 << 30: ((256, 128, 128, 8, 3), (128, 128, 128, 8, 3), (128, 256, 128, 8, 3)),
}  # fmt: skip
"""Tiles worth trying, by the most tokens."""


def linear_configs(m: int, k: int) -> Iterator[Config]:
    most = next(most for most in _LINEAR if m <= most)
    few = m <= 16
    for tile in _LINEAR[most]:
        for splits in (1, 3, 4, 5, 6, 8) if few else (1,):
            for registers in (None, 80, 64) if few and DEVICE.type == "cuda" else (None,):
                yield MmConfig(*tile, splits, registers)
    if target_of(DEVICE).sm == 90 and k % K_GROUP == 0:
        for config in COST:
            if m / 4 <= config.BM < 2 * max(m, 16):
                yield config
                yield config._replace(stream_k=True)


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
    """JSON, a list of lists as HopperConfig and MmConfig have their fields; a fourth that is true
    or false tells Hopper's.
    """
    return [
        HopperConfig(*fields)
        if len(fields) == 3 or isinstance(fields[3], bool)
        else MmConfig(*fields)
        for fields in json.loads(text)
    ]


def _problem(kind: str, shape: tuple[int, ...], op: str, copies: int) -> Callable[[Any], Makers]:
    if kind == "mm":
        m, n, k = shape
        return _mm_makers(m, n, k, copies)
    if kind == "linear":
        m, n, k = shape
        return _linear_makers(m, n, k, copies)
    if kind == "grouped":
        rows, experts, n, k = shape
        return _grouped_makers(rows, experts, n, k)
    m, k = shape
    return _quantizer_makers(op, m, k, copies)


def _run(launches: Sequence[Launch]) -> None:
    for launch in launches:
        launch.run()


def _compile(kind: str, shape: tuple[int, ...], op: str, share: list[Any]) -> None:
    """A worker's share: run each configuration once, which leaves it in Triton's disk cache."""
    makers = _problem(kind, shape, op, 1)
    for config in share:
        try:
            _run(makers(config)[0]()[-1])
        except Exception:  # what does not fit is reported by the parent, which meets it again
            continue
    torch.cuda.synchronize()


def _compile_all(kind: str, shape: tuple[int, ...], op: str, configs: list[Any]) -> None:
    workers = max(1, (os.cpu_count() or 2) - 1)
    with ProcessPoolExecutor(workers, mp_context=get_context("spawn")) as pool:
        shares = [configs[i::workers] for i in range(workers)]
        list(pool.map(partial(_compile, kind, shape, op), shares))


def _settle() -> None:
    if DEVICE.type == "cuda":
        torch.cuda.synchronize()


def sweep(kind: str, op: str, shape: tuple[int, ...], configs: list[Any]) -> list[dict[str, Any]]:
    """Each configuration, whether it gave the right result, and its time; the fastest first."""
    if DEVICE.type == "cuda":  # else they are interpreted
        _compile_all(kind, shape, op, configs)
    makers = _problem(kind, shape, op, COPIES if kind in ("mm", "linear") else 2)
    rows, calls, first = [], {}, None
    for config in configs:
        try:
            out, launches = makers(config)[0]()
            out.view(torch.uint8).fill_(0x7F)
            _run(launches)
            _settle()
        except Exception as error:  # too much shared memory or too many registers for this GPU
            rows.append({"config": config._asdict(), "error": str(error)[:80]})
            continue
        first = out if first is None else first
        same = torch.equal(out.view(torch.uint8), first.view(torch.uint8))
        close = same or furthest(out, first) <= 2**-7  # a step of bf16, as in cases.linear
        rows.append(
            {
                "config": config._asdict(),
                "same_bits": same,
                "right": same or (kind in GEMMS and close),
            }
        )
        calls[str(len(rows) - 1)] = [lambda make=make: _run(make()[-1]) for make in makers(config)]
    for index, timing in compare(calls, DEVICE.type, 7, TURN).items():
        rows[int(index)]["microseconds"] = timing.median * 1e6
    return sorted(rows, key=lambda row: row.get("microseconds", float("inf")))


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
        rows = found[f"{op} {text}"] = sweep(kind, op, shape, configs)
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
