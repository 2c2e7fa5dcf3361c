"""Grouped calls: arguments from tensors. Nothing is read from the device: offsets stay there."""

import functools

import torch
from torch import Tensor

from nvfp4.backends.cutedsl.gemm.config import Alpha, Epilogue, Glu, Kernel, Tile
from nvfp4.backends.cutedsl.gemm.launch import Launch, aligned, loadable, starts_on_16_bytes
from nvfp4.backends.cutedsl.gemm.layouts import layout_of, sized
from nvfp4.backends.cutedsl.runtime.occupancy import clusters_on
from nvfp4.backends.workload import warmed_up
from nvfp4.calls import GroupedMm, GroupedMmGluQuantize, Quantized
from nvfp4.spec.grouped import MAX_EXPERTS
from nvfp4.spec.scale_rules import AMAX_OVER_SIX
from nvfp4.spec.swizzle import TILE_ROWS


def plan_grouped(call: GroupedMm, out: Tensor, tile: Tile, sms: int) -> Launch:
    """The launch of the kernel with this tile on `sms` SMs, for a prepared call."""
    kernel = grouped_kernel_of(
        tile,
        out.dtype,
        call.alpha.shape[1] > 1,
        call.row_scale is not None,
        None if call.bias is None else call.bias.dtype,
        starts_on_16_bytes(out),
    )
    return _launch(kernel, call, {"out": out}, call.bias, sms)


def plan_glu(call: GroupedMmGluQuantize, out: Quantized, tile: Tile, sms: int) -> Launch:
    """The launch of the fused kernel with this tile on `sms` SMs, for a prepared call.

    Of out.data and out.row_scale the experts' rows are written, of out.scales the tiles that these
    take, whole.
    """
    n, segments, p = call.b.shape[1], call.alpha.shape[1], call.global_scale
    if n % (2 * TILE_ROWS) or n // segments % TILE_ROWS:
        raise ValueError(
            f"grouped_mm_glu_quantize: needs I, and alpha's segments, in multiples of {TILE_ROWS}, "
            f"got I = {n // 2}, {segments} segments"
        )
    if p is None:
        raise ValueError("grouped_mm_glu_quantize: needs a global_scale to fuse, got None")
    if out.data.data_ptr() % 32 or out.data.stride(0) % 32:
        raise ValueError("grouped_mm_glu_quantize: needs rows of data that start on 32 bytes")
    kernel = glu_kernel_of(
        tile,
        call.gate_up_dtype or torch.bfloat16,
        call.row_scale is not None,
        call.activation,
        call.swiglu_limit is not None,
        call.scale_rule,
    )
    outputs = {
        "out": out.data,
        "scales": out.scales.view(torch.uint8),
        "global_scale": out.row_scale,
        "p": p,
    }
    return _launch(kernel, call, outputs, None, sms, call.swiglu_limit or 0.0)


@functools.cache
def grouped_kernel_of(
    tile: Tile,
    out_dtype: torch.dtype,
    segments: bool,
    row_scale: bool,
    bias: torch.dtype | None,
    aligned: bool,
) -> Kernel:
    """The kernel for a call's form; aligned: the output's rows start on 16 bytes."""
    alpha = Alpha.SEGMENTS if segments else Alpha.ONE
    by_tma = aligned and not tile.swapped
    dtype = bias or torch.float32
    epilogue = Epilogue(out_dtype, alpha, row_scale, bias is not None, dtype, by_tma)
    return Kernel(tile, epilogue, grouped=True)


@functools.cache
def glu_kernel_of(
    tile: Tile,
    dtype: torch.dtype,
    row_scale: bool,
    activation: str,
    limited: bool,
    scale_rule: str = AMAX_OVER_SIX,
) -> Kernel:
    glu = Glu(activation, limited, scale_rule)
    epilogue = Epilogue(dtype, row_scale=row_scale, tma_store=False, glu=glu)
    return Kernel(tile, epilogue, grouped=True)


def _launch(
    kernel: Kernel,
    call: GroupedMm | GroupedMmGluQuantize,
    outputs: dict[str, Tensor],
    bias: Tensor | None,
    sms: int,
    limit: float = 0.0,
) -> Launch:
    (rows, half_k), (experts, n, _) = call.a.shape, call.b.shape
    alpha, row_scale = call.alpha, call.row_scale
    kernel = sized_for_rows(kernel, call.expected_rows or rows, experts, n, 2 * half_k, sms)
    if experts > MAX_EXPERTS:
        raise ValueError(f"grouped_mm: needs up to {MAX_EXPERTS} experts, got {experts}")
    tensors = {
        "a": loadable(call.a),
        "b": loadable(call.b.reshape(experts * n, half_k)),
        "a_scales": aligned(call.a_scales.view(torch.uint8)),
        "b_scales": aligned(call.b_scales.view(torch.uint8)),
        "alpha": alpha,
        "row_scale": alpha if row_scale is None else row_scale,
        "bias": alpha if bias is None else bias,
        "offsets": call.offsets,
        "out": outputs["out"],
        **{name: outputs.get(name, alpha) for name in ("scales", "p", "global_scale")},
    }
    sizes = (
        rows,
        n,
        2 * half_k,
        experts,
        call.a_scales.shape[0] // TILE_ROWS,
        tensors["a"].stride(0),
        tensors["b"].stride(0),
        tensors["out"].stride(0),
        alpha.shape[1],
        int(tensors["p"].numel() > 1),
        min(
            clusters_of(kernel, rows, experts, n, sms),
            clusters_on(kernel, tensors["out"].device, sms),
        ),
        limit,
    )
    own = {name: t for name, t in tensors.items() if name == "alpha" or t is not alpha}
    return Launch(kernel, tuple(tensors.values()), sizes, own, frozenset())


def clusters_of(kernel: Kernel, rows: int, experts: int, n: int, sms: int) -> int:
    """Clusters to launch: persistent, one CTA an SM; but no more than there can be tiles, however
    the rows are divided among the experts.
    """
    return max(1, min(most_tiles(kernel, rows, experts, n), sms // kernel.tile.cluster))


def most_tiles(kernel: Kernel, rows: int, experts: int, n: int) -> int:
    """The most tiles that `rows` rows of `experts` experts can take."""
    layout = layout_of(kernel)
    step = layout.token_step
    token_tiles = (rows + min(experts, rows) * (step - 1)) // step
    return token_tiles * -(-(n // 2 if layout.glu else n) // layout.weight_step)


def sized_for_rows(kernel: Kernel, rows: int, experts: int, n: int, k: int, sms: int) -> Kernel:
    """The kernel for so many expected rows: in half of an SM, where that costs nothing."""
    rows = warmed_up(rows)
    clusters = clusters_of(kernel, rows, experts, n, sms)
    return sized(kernel, most_tiles(kernel, rows, experts, n), clusters, k)
