"""Launch a compiled kernel: arguments from tensors, and functions loaded once per device."""

import functools
from collections.abc import Callable
from typing import Any, NamedTuple

import torch
from torch import Tensor

from nvfp4.backends.cutedsl.gemm.choose import B200_SMS
from nvfp4.backends.cutedsl.gemm.config import Alpha, Epilogue, Kernel, Tile
from nvfp4.backends.cutedsl.gemm.layouts import sized
from nvfp4.backends.cutedsl.runtime.compile import FUNCTION, compiled
from nvfp4.backends.cutedsl.runtime.occupancy import clusters_on
from nvfp4.backends.recording import write_down
from nvfp4.backends.target import target_of
from nvfp4.calls import Mm, StageMm


class Launch(NamedTuple):
    """A kernel and its run-time arguments but the stream."""

    kernel: Kernel
    operands: tuple[Tensor, ...]
    """Their addresses are the first arguments; what is not there is an address that is not read."""
    sizes: tuple[int | float, ...]
    """The other arguments."""
    tensors: dict[str, Tensor]
    """What the kernel reads and writes, by name."""
    outputs: frozenset[str] = frozenset({"out"})
    """Names of the tensors that it writes whole."""
    constants: frozenset[str] = frozenset()
    """Names of the tensors that it reads before the kernel before it has ended."""

    @property
    def args(self) -> tuple[int | float, ...]:
        return *(operand.data_ptr() for operand in self.operands), *self.sizes

    @property
    def device(self) -> torch.device:
        return self.tensors["out"].device

    def run(self) -> None:
        """Launch on the current stream of the tensors' GPU; emulate where they are on a CPU."""
        if self.device.type != "cuda":
            from nvfp4.backends.cutedsl.runtime import emulated  # not needed where there is a GPU

            emulated.run(self)
        elif self.device.index == torch.cuda.current_device():
            self._run_here()
        else:
            with torch.cuda.device(self.device):
                self._run_here()

    def _run_here(self) -> None:
        launch, _ = self.bound()
        launch(*self.args)

    def bound(self) -> tuple[Callable[..., None], tuple[Any, ...]]:
        """What to launch, and its arguments in the form that a recording takes."""
        return on_current_stream(self.kernel, self.device), (*self.operands, *self.sizes)

    def describe(self) -> str:
        return str(self.kernel)


def plan(call: Mm, out: Tensor, tile: Tile, sms: int) -> Launch:
    """The launch of the kernel with this tile on `sms` SMs, for a prepared call."""
    (m, n), k = out.shape, 2 * call.a.shape[1]
    alpha, row_scale, bias = call.alpha, call.row_scale, call.bias
    a, b = loadable(call.a), loadable(call.b)
    a_scales = aligned(call.a_scales.view(torch.uint8))
    b_scales = aligned(call.b_scales.view(torch.uint8))
    alpha_rows, segments = alpha.shape
    copied = b is not call.b or b_scales.data_ptr() != call.b_scales.data_ptr()
    constants = ("b", "b_scales") if isinstance(call, StageMm) and not copied else ()
    kernel = kernel_of(
        tile,
        out.dtype,
        Alpha.of(alpha_rows, segments),
        row_scale is not None,
        None if bias is None else bias.dtype,
        starts_on_16_bytes(out),
        bool(constants),
    )
    tensors = {"a": a, "b": b, "a_scales": a_scales, "b_scales": b_scales, "alpha": alpha}
    tensors |= {} if row_scale is None else {"row_scale": row_scale}
    tensors |= {} if bias is None else {"bias": bias}
    tensors["out"] = out
    operands, rows, columns = (a, b, a_scales, b_scales), m, n
    if tile.swapped:
        operands, rows, columns = (b, a, b_scales, a_scales), n, m
    if problems := tile.unfit(rows, columns, k):
        raise ValueError(f"tile {tile}: {'; '.join(problems)}")
    clusters = tile.clusters(rows, columns, sms)
    kernel = sized(kernel, tile.tiles(rows, columns), clusters, k)
    factors = alpha, alpha if row_scale is None else row_scale, alpha if bias is None else bias
    sizes = (
        rows,
        columns,
        k,
        *(operand.stride(0) for operand in operands[:2]),
        out.stride(0),
        segments if alpha_rows > 1 else 0,
        n // segments,
        int(row_scale is not None and row_scale.numel() > 1),
        tile.clusters(rows, columns, tile.cluster * clusters_on(kernel, out.device, sms)),
        group_m_of(tile, rows, k),
    )
    addresses = (*operands, *factors, out)
    return Launch(kernel, addresses, sizes, tensors, constants=frozenset(constants))


GROUP_M_BYTES = 48 << 20
"""Bytes of A, with its scales, that a group of tile rows may have. They stay in a B200's L2 of
126 MB while B and D pass through it."""


def group_m_of(tile: Tile, rows: int, k: int) -> int:
    """Rows of cluster tiles that are rasterized together (GROUP_M in Triton's GEMMs).

    All of them if their A stays in L2; else groups of nearly the same height whose A does.
    """
    high = tile.cluster_tile[0]
    tiles = max(1, -(-rows // high))
    groups = -(-tiles * high * k * 9 // (16 * GROUP_M_BYTES))
    return -(-tiles // max(1, groups))


@functools.cache
def kernel_of(
    tile: Tile,
    out_dtype: torch.dtype,
    alpha: Alpha,
    row_scale: bool,
    bias: torch.dtype | None,
    aligned: bool,
    constant_weights: bool,
) -> Kernel:
    """The kernel for a call's form; aligned: the output's rows start on 16 bytes."""
    by_tma = aligned and not tile.swapped and alpha is not Alpha.MATRIX
    dtype = bias or torch.float32
    epilogue = Epilogue(out_dtype, alpha, row_scale, bias is not None, dtype, by_tma)
    return Kernel(tile, epilogue, constant_weights=constant_weights)


def loadable(data: Tensor) -> Tensor:
    """Packed rows as TMA can load them, from and at multiples of 16 bytes.

    K that is not a multiple of 32 has rows that are not: those are copied to rows that are.
    """
    if starts_on_16_bytes(data):
        return data
    rows, width = data.shape
    copy = data.new_empty(rows, -(-width // 16) * 16)[:, :width]
    return copy.copy_(data)


def starts_on_16_bytes(x: Tensor) -> bool:
    """Whether each row does, as TMA needs."""
    return x.data_ptr() % 16 == 0 and x.stride(0) * x.element_size() % 16 == 0


def aligned(scales: Tensor) -> Tensor:
    return scales if scales.data_ptr() % 16 == 0 else scales.clone()


@functools.cache
def sms_of(device: torch.device) -> int:
    """The SMs to run on: all of the GPU's. The emulator stands for a B200."""
    if device.type != "cuda":
        return B200_SMS
    return torch.cuda.get_device_properties(device).multi_processor_count


def run_or_emulate(launch: Launch) -> None:
    """Run a launch on the GPU that its tensors are on; the emulator runs one of CPU tensors."""
    launch.run()
    write_down(launch)


@functools.cache
def on_current_stream(kernel: Kernel, device: torch.device) -> Callable[..., None]:
    """The kernel's function on a GPU, without its last argument, which is the current stream."""
    function = function_on(kernel, device)

    def launch(*args: int | float) -> None:
        function(*args, torch.cuda.current_stream().cuda_stream)

    return launch


@functools.cache
def function_on(kernel: Kernel, device: torch.device) -> Callable[..., Any]:
    """The kernel's function, loaded for a GPU. A first use compiles, unless the cache has it."""
    if torch.cuda.is_current_stream_capturing():
        raise RuntimeError(
            f"nvfp4: {kernel.tile} would be compiled while a CUDA graph is captured; call "
            "nvfp4.warmup(...) with this shape before capturing"
        )
    from nvfp4.backends.cutedsl.runtime import compat  # imports CuTe DSL, which takes seconds

    code = compiled(kernel, f"sm_{target_of(device).sm}a")
    return compat.load(code.object_code, FUNCTION)
