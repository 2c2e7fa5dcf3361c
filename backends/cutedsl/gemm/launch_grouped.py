"""Grouped calls: arguments from tensors. Nothing is read from the device: offsets stay there."""

import functools

import torch
from torch import Tensor

from nvfp4.backends.cutedsl.gemm.config import Alpha, Epilogue, Glu, Kernel, Tile
from nvfp4.backends.cutedsl.gemm.launch import Launch, aligned, loadable, starts_on_16_bytes
from nvfp4.backends.cutedsl.gemm.layouts import layout_of
from nvfp4.spec.grouped import MAX_EXPERTS
from nvfp4.spec.swizzle import TILE_ROWS


def plan_grouped(
    a: Tensor,
    b: Tensor,
    a_scales: Tensor,
    b_scales: Tensor,
    alpha: Tensor,
    row_scale: Tensor | None,
    bias: Tensor | None,
    offsets: Tensor,
    out: Tensor,
    tile: Tile,
    sms: int,
) -> Launch:
    """a uint8 [R, K/2], expert-major; b uint8 [E, N, K/2]; a_scales grouped, b_scales swizzled
    [E, Np, Kp]; alpha float32 [E, S], row_scale float32 [R], bias [E, N], offsets int32 [E+1], out
    [R, N] -> the launch of the kernel with this tile on `sms` SMs.
    """
    kernel = grouped_kernel_of(
        tile,
        out.dtype,
        alpha.shape[1] > 1,
        row_scale is not None,
        None if bias is None else bias.dtype,
        starts_on_16_bytes(out),
    )
    inputs = (a, b, a_scales, b_scales, alpha, row_scale, bias, offsets)
    return _launch(kernel, *inputs, {"out": out}, sms)


def plan_glu(
    a: Tensor,
    b: Tensor,
    a_scales: Tensor,
    b_scales: Tensor,
    alpha: Tensor,
    row_scale: Tensor | None,
    offsets: Tensor,
    p: Tensor,
    limit: float | None,
    activation: str,
    dtype: torch.dtype,
    data: Tensor,
    scales: Tensor,
    global_scale: Tensor,
    tile: Tile,
    sms: int,
) -> Launch:
    """The same with b [E, 2I, K/2], gate's rows first; p float32 [1] or [E]; data uint8 [R, I/2]
    and global_scale float32 [R] of experts' rows are written, and of the grouped scales the tiles
    that these take, whole.
    """
    (_, n, _), segments = b.shape, alpha.shape[1]
    if n % (2 * TILE_ROWS) or n // segments % TILE_ROWS:
        raise ValueError(
            f"grouped_mm_glu_quantize: needs I, and alpha's segments, in multiples of {TILE_ROWS}, "
            f"got I = {n // 2}, {segments} segments"
        )
    if data.data_ptr() % 32 or data.stride(0) % 32:
        raise ValueError("grouped_mm_glu_quantize: needs rows of data that start on 32 bytes")
    kernel = glu_kernel_of(tile, dtype, row_scale is not None, activation, limit is not None)
    inputs = (a, b, a_scales, b_scales, alpha, row_scale, None, offsets)
    outputs = {"out": data, "scales": scales.view(torch.uint8), "global_scale": global_scale}
    return _launch(kernel, *inputs, {**outputs, "p": p}, sms, 0.0 if limit is None else limit)


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
    tile: Tile, dtype: torch.dtype, row_scale: bool, activation: str, limited: bool
) -> Kernel:
    glu = Glu(activation, limited)
    epilogue = Epilogue(dtype, row_scale=row_scale, tma_store=False, glu=glu)
    return Kernel(tile, epilogue, grouped=True)


def _launch(
    kernel: Kernel,
    a: Tensor,
    b: Tensor,
    a_scales: Tensor,
    b_scales: Tensor,
    alpha: Tensor,
    row_scale: Tensor | None,
    bias: Tensor | None,
    offsets: Tensor,
    outputs: dict[str, Tensor],
    sms: int,
    limit: float = 0.0,
) -> Launch:
    (rows, half_k), (experts, n, _) = a.shape, b.shape
    if experts > MAX_EXPERTS:
        raise ValueError(f"grouped_mm: needs up to {MAX_EXPERTS} experts, got {experts}")
    tensors = {
        "a": loadable(a),
        "b": loadable(b.reshape(experts * n, half_k)),
        "a_scales": aligned(a_scales.view(torch.uint8)),
        "b_scales": aligned(b_scales.view(torch.uint8)),
        "alpha": alpha,
        "row_scale": alpha if row_scale is None else row_scale,
        "bias": alpha if bias is None else bias,
        "offsets": offsets,
        "out": outputs["out"],
        **{name: outputs.get(name, alpha) for name in ("scales", "p", "global_scale")},
    }
    args = (
        *(tensor.data_ptr() for tensor in tensors.values()),
        rows,
        n,
        2 * half_k,
        experts,
        a_scales.shape[0] // TILE_ROWS,
        tensors["a"].stride(0),
        tensors["b"].stride(0),
        tensors["out"].stride(0),
        alpha.shape[1],
        int(tensors["p"].numel() > 1),
        clusters_of(kernel, rows, experts, n, sms),
        limit,
    )
    own = {name: t for name, t in tensors.items() if name == "alpha" or t is not alpha}
    return Launch(kernel, args, own, frozenset())


def clusters_of(kernel: Kernel, rows: int, experts: int, n: int, sms: int) -> int:
    """Clusters to launch: persistent, one CTA an SM; but no more than there can be tiles, however
    the rows are divided among the experts.
    """
    layout = layout_of(kernel)
    step = layout.token_step
    token_tiles = (rows + min(experts, rows) * (step - 1)) // step
    weight_tiles = -(-(n // 2 if layout.glu else n) // layout.weight_step)
    return max(1, min(token_tiles * weight_tiles, sms // kernel.tile.cluster))
