"""Argument checks, shared by an op's implementation and its fake.

Every failure is a ValueError that names the op, the argument, what it needs and what it got. Only
shapes, dtypes and devices are looked at, so nothing waits for a GPU; values are checked on CPU
tensors alone, and by the implementation alone (valid_values).
"""

from collections.abc import Sequence
from math import prod

import torch
from torch import Tensor

from nvfp4.spec.format import BLOCK, DATA_DTYPE, FLOAT_DTYPES, SCALE_DTYPE, SCALE_LAYOUTS, SWIZZLED
from nvfp4.spec.swizzle import scales_shape

PACKED_DTYPES = (DATA_DTYPE, torch.float4_e2m1fn_x2)


class Checker:
    """The checks of one op's arguments; `reference` is the tensor whose device the others must
    share.
    """

    def __init__(self, op: str, reference: Tensor) -> None:
        self.op = op
        self.device = reference.device

    def fail(self, argument: str, need: str, got: object) -> None:
        raise ValueError(f"nvfp4::{self.op}: {argument} needs {need}, got {got}")

    def tensor(self, argument: str, x: Tensor, dtypes: Sequence[torch.dtype]) -> None:
        if x.dtype not in dtypes:
            self.fail(argument, "dtype " + " or ".join(map(_name, dtypes)), _name(x.dtype))
        if x.device != self.device:
            self.fail(argument, f"to be on {self.device} with the other tensors", x.device)

    def floats(self, argument: str, x: Tensor, multiple: int = BLOCK) -> tuple[int, int]:
        """x [..., K] with K a positive multiple; returns (rows, K)."""
        self.tensor(argument, x, FLOAT_DTYPES)
        if x.dim() == 0 or x.shape[-1] == 0 or x.shape[-1] % multiple:
            self.fail(
                argument,
                f"a last dimension that is a positive multiple of {multiple}",
                f"shape {list(x.shape)}",
            )
        return prod(x.shape[:-1]), x.shape[-1]

    def packed(self, argument: str, data: Tensor, dim: int | None = None) -> tuple[int, int]:
        """data [..., K/2] with K a positive multiple of 16; returns (rows, K)."""
        self.tensor(argument, data, PACKED_DTYPES)
        if dim is not None and data.dim() != dim:
            self.fail(argument, f"{dim} dimensions", f"shape {list(data.shape)}")
        if data.dim() == 0 or data.shape[-1] == 0 or data.shape[-1] % (BLOCK // 2):
            need = f"a last dimension K/2 with K a positive multiple of {BLOCK}"
            self.fail(argument, need, f"shape {list(data.shape)}")
        return prod(data.shape[:-1]), data.shape[-1] * 2

    def layout(self, scale_layout: str) -> None:
        if scale_layout not in SCALE_LAYOUTS:
            self.fail("scale_layout", " or ".join(map(repr, SCALE_LAYOUTS)), repr(scale_layout))

    def scales(
        self, argument: str, scales: Tensor, shape: Sequence[int], scale_layout: str
    ) -> None:
        """The block scales of a logical tensor of `shape` [..., K]."""
        self.tensor(argument, scales, (SCALE_DTYPE,))
        need = scales_shape(shape, scale_layout)
        if tuple(scales.shape) != tuple(need):
            hint = (
                " (nvfp4.swizzle_scales makes it from linear scales)"
                if scale_layout == SWIZZLED
                else ""
            )
            self.fail(
                argument,
                f"the {scale_layout} shape {list(need)}{hint}",
                f"shape {list(scales.shape)}",
            )

    def global_scale(self, argument: str, p: Tensor, rows: int) -> None:
        self.tensor(argument, p, (torch.float32,))
        if p.dim() > 1 or (p.dim() == 1 and p.shape[0] != 1 and p.shape[0] != rows):
            self.fail(
                argument, f"shape [], [1] or [{rows}] (one per row)", f"shape {list(p.shape)}"
            )

    def segments(self, argument: str, count: int, n: int) -> None:
        if count == 0 or n % count:
            self.fail(argument, f"a number of segments that divides N = {n}", count)

    def bias(self, bias: Tensor | None, n: int) -> None:
        if bias is not None:
            self.tensor("bias", bias, FLOAT_DTYPES)
            if tuple(bias.shape) != (n,):
                self.fail("bias", f"shape [{n}]", f"shape {list(bias.shape)}")

    def out_dtype(self, out_dtype: torch.dtype | None) -> None:
        if out_dtype is not None and out_dtype not in FLOAT_DTYPES:
            self.fail(
                "out_dtype", "one of " + ", ".join(map(_name, FLOAT_DTYPES)), _name(out_dtype)
            )


def _name(dtype: object) -> str:
    return str(dtype).removeprefix("torch.")


def valid_values(op: str, argument: str, p: Tensor) -> None:
    """Scales must be finite and positive; looked at on a CPU only, where it costs no
    synchronization.
    """
    if p.device.type != "cpu":
        return
    bad = ~((p > 0) & (p < torch.inf))
    if bool(bad.any()):
        got = p[bad].flatten()[0].item()
        raise ValueError(f"nvfp4::{op}: {argument} needs finite positive values, got {got}")


def matrix(x: Tensor) -> Tensor:
    """x [..., C], not empty, as [rows, C] with contiguous rows; a copy only if strides force it."""
    x = x.reshape(-1, x.shape[-1])
    return x if x.stride(1) == 1 else x.contiguous()
