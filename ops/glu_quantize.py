"""nvfp4::glu_quantize: a gated linear unit's elementwise half, act(gate) * up, and the quantization
of its result, in one pass; nvfp4::silu_mul_quantize is its SwiGLU with a known global scale.
"""

import torch
from torch import Tensor

from nvfp4.dispatch import launcher
from nvfp4.ops.checks import Checker, matrix, valid_offsets, valid_values, vector
from nvfp4.ops.experts import ExpertRows
from nvfp4.ops.library import define
from nvfp4.ops.quantize import empty_quantized
from nvfp4.ops.tensor import QuantizedTensor
from nvfp4.spec.format import BLOCK, DATA_DTYPE, SCALE_DTYPE, SWIZZLED
from nvfp4.spec.glu import SILU
from nvfp4.spec.grouped import grouped_scales_shape

SIGNATURE = """(Tensor gate_up, Tensor? global_scale=None, Tensor? offsets=None,
    float? limit=None, str activation="silu", str scale_layout="swizzled", str backend="")
    -> (Tensor data, Tensor scales, Tensor row_scale)"""

Quantized = tuple[Tensor, Tensor, Tensor]
"""data, scales, one global scale per row."""


def empty_grouped(like: Tensor, rows: int, experts: int, k: int) -> Quantized:
    """Unwritten data, grouped scales and row scales of expert-major rows [rows, k]. Launchers write
    experts' rows, and whole the scale tiles that these take.
    """
    data = like.new_empty((rows, k // 2), dtype=DATA_DTYPE)
    scales = like.new_empty(grouped_scales_shape(rows, experts, k), dtype=SCALE_DTYPE)
    return data, scales, like.new_empty((rows,), dtype=torch.float32)


def zero_grouped(like: Tensor, rows: int, experts: int, k: int) -> Quantized:
    """The same for an op's outputs: what nobody writes is zero."""
    data, scales, p = empty_grouped(like, rows, experts, k)
    scales.view(DATA_DTYPE).zero_()
    return data.zero_(), scales, p.zero_()


def _outputs(
    gate_up: Tensor,
    global_scale: Tensor | None = None,
    offsets: Tensor | None = None,
    limit: float | None = None,
    activation: str = SILU,
    scale_layout: str = SWIZZLED,
    backend: str = "",
) -> Quantized:
    check = Checker("glu_quantize", gate_up)
    rows, both = check.floats("gate_up", gate_up, multiple=2 * BLOCK)
    check.layout(scale_layout)
    check.glu(limit, activation)
    if offsets is None:
        if global_scale is not None:
            check.global_scale("global_scale", global_scale, rows)
        data, scales = empty_quantized(gate_up, gate_up.shape[:-1], both // 2, scale_layout)
        return data, scales, gate_up.new_empty((rows,), dtype=torch.float32)
    experts = check.offsets(offsets)
    check.static_scale("global_scale", global_scale, experts)
    if gate_up.dim() != 2:
        check.fail("gate_up", "2 dimensions with offsets", f"shape {list(gate_up.shape)}")
    if scale_layout != SWIZZLED:
        check.fail("scale_layout", f"{SWIZZLED!r} with offsets", repr(scale_layout))
    return zero_grouped(gate_up, rows, experts, both // 2)


def _run(
    gate_up: Tensor,
    global_scale: Tensor | None = None,
    offsets: Tensor | None = None,
    limit: float | None = None,
    activation: str = SILU,
    scale_layout: str = SWIZZLED,
    backend: str = "",
) -> Quantized:
    data, scales, p = _outputs(gate_up, global_scale, offsets, limit, activation, scale_layout)
    if global_scale is not None:
        valid_values("glu_quantize", "global_scale", global_scale)
    launch = launcher("glu_quantize", gate_up.device, backend)
    if offsets is not None:
        valid_offsets("glu_quantize", offsets, gate_up.shape[0])
        offsets = offsets.contiguous()
    if data.numel():
        launch(
            matrix(gate_up), vector(global_scale), offsets, limit, activation, scale_layout,
            matrix(data), matrix(scales), p,
        )  # fmt: skip
    return data, scales, p


define("glu_quantize", SIGNATURE, _outputs, _run)


def glu_quantize(
    gate_up: Tensor,
    global_scale: Tensor | None = None,
    limit: float | None = None,
    activation: str = SILU,
    scale_layout: str = SWIZZLED,
    backend: str = "",
) -> QuantizedTensor:
    """Quantize act(gate) * up, with gate = gate_up[..., :I] and up = gate_up[..., I:].

    Args:
        gate_up: [..., 2I] bfloat16, float16 or float32, I a multiple of 16.
        global_scale: of the product; float32 [], [1] or [M] (one per row); None: each row its own,
            amax_row / 2688, found in the same pass.
        limit: with a limit L, gate is min(gate, L) *before* the activation and up is clamp(up, -L,
            L).
        activation: "silu" (SwiGLU) or "gelu_tanh" (GeGLU).

    The arithmetic is float32 throughout and the same to the bit on every backend (spec/glu.py).
    Returns data [..., I/2], its scales, and global_scale [M].
    """
    data, scales, p = torch.ops.nvfp4.glu_quantize(
        gate_up, global_scale, None, limit, activation, scale_layout, backend
    )
    return QuantizedTensor(data, scales, p, scale_layout)


def grouped_glu_quantize(
    gate_up: Tensor,
    offsets: Tensor,
    global_scale: Tensor | None = None,
    limit: float | None = None,
    activation: str = SILU,
    backend: str = "",
) -> ExpertRows:
    """nvfp4.glu_quantize of expert-major rows gate_up [R, 2I], their scales grouped.

    global_scale: float32 [], [1] or [E] (one per expert), calibrated; None: each row's own.
    """
    data, scales, p = torch.ops.nvfp4.glu_quantize(
        gate_up, global_scale, offsets, limit, activation, SWIZZLED, backend
    )
    return ExpertRows(data, scales, p, offsets)
