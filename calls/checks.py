"""Argument checks, shared by an op's implementation and its fake.

Every failure is a ValueError that names the op, the argument, what it needs and what it got. Only
shapes, dtypes and devices are looked at, so nothing waits for a GPU; values are checked on CPU
tensors alone, and by the implementation alone (valid_values).
"""

from collections.abc import Sequence
from math import prod
from typing import Any, NoReturn

import torch
from torch import Tensor

from nvfp4.calls.call import op_of
from nvfp4.spec.format import (
    BLOCK,
    DATA_DTYPE,
    FLOAT_DTYPES,
    SCALE_DTYPE,
    SCALE_LAYOUTS,
    SWIZZLED,
    W4A4,
    W4A16,
)
from nvfp4.spec.glu import ACTIVATIONS, GATED, columns_per_output
from nvfp4.spec.grouped import MAX_EXPERTS, grouped_scales_shape
from nvfp4.spec.scale_rules import AMAX_OVER_SIX, SCALE_RULES
from nvfp4.spec.swizzle import scales_shape

PACKED_DTYPES = (DATA_DTYPE, torch.float4_e2m1fn_x2)
ID_DTYPES = (torch.int32, torch.int64)


class Checker:
    """The checks of one call's arguments; all tensors must be on the first one's device."""

    def __init__(self, call: Sequence[Any]) -> None:
        self.op = op_of(call.__class__)
        self.device = call[0].device

    def fail(self, argument: str, need: str, got: object) -> NoReturn:
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

    def scale_rule(self, scale_rule: str) -> None:
        if scale_rule not in SCALE_RULES:
            self.fail("scale_rule", " or ".join(map(repr, SCALE_RULES)), repr(scale_rule))

    def scales(
        self, argument: str, scales: Tensor, shape: Sequence[int], scale_layout: str
    ) -> None:
        """The block scales of a logical tensor of `shape` [..., K]."""
        self.tensor(argument, scales, (SCALE_DTYPE,))
        need = scales_shape(shape, scale_layout)
        hint = " (nvfp4.swizzle_scales makes it from linear scales)"
        layout = f"the {scale_layout} shape"
        self.shape(argument, scales, need, layout, hint if scale_layout == SWIZZLED else "")

    def shape(
        self, argument: str, x: Tensor, need: Sequence[int], what: str = "shape", hint: str = ""
    ) -> None:
        if tuple(x.shape) != tuple(need):
            self.fail(argument, f"{what} {list(need)}{hint}", f"shape {list(x.shape)}")

    def global_scale(self, argument: str, p: Tensor, rows: int) -> None:
        self.tensor(argument, p, (torch.float32,))
        if p.dim() > 1 or (p.dim() == 1 and p.shape[0] != 1 and p.shape[0] != rows):
            self.fail(
                argument, f"shape [], [1] or [{rows}] (one per row)", f"shape {list(p.shape)}"
            )

    def segments(self, argument: str, count: int, n: int) -> None:
        if count == 0 or n % count:
            self.fail(argument, f"a number of segments that divides N = {n}", count)

    def weight(self, argument: str, w: Tensor, scales: Tensor, p: Tensor) -> tuple[int, int]:
        """w [N, K/2] with `argument`_scales and `argument`_global_scale [], [1] or [S]; (N, K)."""
        n, k = self.packed(argument, w, dim=2)
        self.scales(f"{argument}_scales", scales, (n, k), SWIZZLED)
        name = f"{argument}_global_scale"
        self.tensor(name, p, (torch.float32,))
        if p.dim() > 1:
            self.fail(name, "shape [], [1] or [S] (S segments of N)", f"shape {list(p.shape)}")
        if p.dim() == 1:
            self.segments(name, p.shape[0], n)
        return n, k

    def row_vector(self, argument: str, x: Tensor, k: int) -> None:
        """x [K], a factor of each column."""
        self.tensor(argument, x, FLOAT_DTYPES)
        self.shape(argument, x, (k,))

    def bias(self, argument: str, bias: Tensor | None, *shape: int) -> None:
        if bias is not None:
            self.tensor(argument, bias, FLOAT_DTYPES)
            self.shape(argument, bias, shape)

    def glu(self, swiglu_limit: float | None, activation: str = ACTIVATIONS[0]) -> None:
        if swiglu_limit is not None and not 0 < swiglu_limit < float("inf"):
            self.fail("swiglu_limit", "a finite positive number or None", swiglu_limit)
        if activation not in ACTIVATIONS:
            self.fail("activation", "one of " + ", ".join(map(repr, ACTIVATIONS)), repr(activation))
        if swiglu_limit is not None and activation not in GATED:
            self.fail("swiglu_limit", f"to be None with activation={activation!r}", swiglu_limit)

    def activation_format(
        self,
        argument: str,
        activation_format: str,
        scale_rule: str,
        **static_scales: Tensor | None,
    ) -> None:
        """W4A4 or W4A16. W4A16 quantizes nothing: it has no static scales, and no other rule."""
        self.scale_rule(scale_rule)
        if activation_format not in (W4A4, W4A16):
            self.fail(argument, f"{W4A4!r} or {W4A16!r}", repr(activation_format))
        for name, p in static_scales.items():
            if activation_format == W4A16 and p is not None:
                need = f"to be None with {argument}={W4A16!r}, which quantizes nothing"
                self.fail(name, need, f"shape {list(p.shape)}")
        if activation_format == W4A16 and scale_rule != AMAX_OVER_SIX:
            need = f"{AMAX_OVER_SIX!r} with {argument}={W4A16!r}, which quantizes nothing"
            self.fail("scale_rule", need, repr(scale_rule))

    def mlp(self, hidden: int, n: int, k: int, intermediate: int, activation: str) -> None:
        """w13 [n, k] and w2's I fit x's H and each other: n is 2I, or I without a gate."""
        if k != hidden:
            self.fail("w13", f"x's K = {hidden}, that is {hidden // 2} bytes a row", f"K = {k}")
        parts = columns_per_output(activation)
        if n != parts * intermediate:
            need = f"N = {'2' * (parts == 2)}I = {parts * intermediate}"
            self.fail("w13", f"{need} (w2 has K = I = {intermediate})", n)

    # experts

    def weight_per_choice(self, topk_weights: Tensor, like: Tensor) -> None:
        """topk_weights [M, top_k], as `like` has one entry for each choice."""
        self.tensor("topk_weights", topk_weights, FLOAT_DTYPES)
        self.shape("topk_weights", topk_weights, like.shape)

    def experts(self, argument: str, experts: int) -> None:
        if not 0 < experts <= MAX_EXPERTS:
            self.fail(argument, f"1 to {MAX_EXPERTS} experts", experts)

    def expert_weights(self, argument: str, w: Tensor, scales: Tensor) -> tuple[int, int, int]:
        """w [E, N, K/2] and `argument`_scales [E, Np, Kp], each expert's swizzled; (E, N, K)."""
        _, k = self.packed(argument, w, dim=3)
        experts, n = w.shape[:2]
        self.experts(argument, experts)
        name = f"{argument}_scales"
        self.tensor(name, scales, (SCALE_DTYPE,))
        need = (experts, *scales_shape((n, k), SWIZZLED))
        hint = " (each expert's swizzled: nvfp4.quantize_experts, nvfp4.stack_experts)"
        self.shape(name, scales, need, hint=hint)
        return experts, n, k

    def per_expert(self, argument: str, p: Tensor, experts: int, n: int) -> None:
        """float32 [E] or [E, S], S segments of N."""
        self.tensor(argument, p, (torch.float32,))
        if p.dim() not in (1, 2) or p.shape[0] != experts:
            need = f"shape [{experts}] or [{experts}, S] (S segments of N)"
            self.fail(argument, need, f"shape {list(p.shape)}")
        if p.dim() == 2:
            self.segments(argument, p.shape[1], n)

    def static_scale(self, argument: str, p: Tensor | None, experts: int = 1) -> None:
        """A calibrated scale: none, one, or one an expert."""
        if p is not None:
            self.tensor(argument, p, (torch.float32,))
            if p.dim() > 1 or (p.dim() == 1 and p.shape[0] not in (1, experts)):
                each = f" or [{experts}] (one per expert)" if experts > 1 else ""
                self.fail(argument, f"shape [], [1]{each}", f"shape {list(p.shape)}")

    def grouped_scales(
        self, argument: str, scales: Tensor, rows: int, experts: int, k: int
    ) -> None:
        self.tensor(argument, scales, (SCALE_DTYPE,))
        need = grouped_scales_shape(rows, experts, k)
        self.shape(argument, scales, need, "the grouped shape")

    def offsets(self, offsets: Tensor, experts: int | None = None) -> int:
        """int32 [E+1]; returns E."""
        self.tensor("offsets", offsets, (torch.int32,))
        if offsets.dim() != 1 or experts not in (None, offsets.shape[0] - 1):
            need = "[E + 1]" if experts is None else f"[{experts + 1}]"
            self.fail("offsets", f"shape {need}", f"shape {list(offsets.shape)}")
        self.experts("offsets", offsets.shape[0] - 1)
        return offsets.shape[0] - 1

    def out_dtype(self, out_dtype: torch.dtype | None, argument: str = "out_dtype") -> None:
        if out_dtype is not None and out_dtype not in FLOAT_DTYPES:
            self.fail(argument, "one of " + ", ".join(map(_name, FLOAT_DTYPES)), _name(out_dtype))


def _name(dtype: object) -> str:
    return str(dtype).removeprefix("torch.")


def check_values(call: Any) -> None:
    """Check what shapes do not tell: scales are finite and positive, offsets rise within the rows.

    Only CPU tensors are looked at, where it costs no synchronization.
    """
    op = op_of(call.__class__)
    for argument, value in zip(call._fields, call, strict=True):
        if not isinstance(value, Tensor) or not _readable(value):
            continue
        if argument == "alpha" or argument.endswith("global_scale"):
            _check_positive(op, argument, value)
        elif argument == "offsets":
            _check_offsets(op, value, call[0].shape[0])


def _readable(x: Tensor) -> bool:
    """Whether x's values can be looked at without waiting."""
    return x.device.type == "cpu"


def _check_positive(op: str, argument: str, p: Tensor) -> None:
    bad = ~((p > 0) & (p < torch.inf))
    if bool(bad.any()):
        got = p[bad].flatten()[0].item()
        raise ValueError(f"nvfp4::{op}: {argument} needs finite positive values, got {got}")


def _check_offsets(op: str, offsets: Tensor, rows: int) -> None:
    falls = bool((offsets[1:] < offsets[:-1]).any())  # a difference would wrap in int32
    if falls or offsets[0] != 0 or offsets[-1] > rows:
        need = f"values from 0 up that do not fall, the last at most {rows} (the rows)"
        raise ValueError(f"nvfp4::{op}: offsets needs {need}, got {offsets.tolist()}")
