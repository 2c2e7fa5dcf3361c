"""The error of a quantized layer, beside that of rounding to nearest."""

from typing import NamedTuple

import torch
from torch import Tensor

from nvfp4.quantization.methods import RTN, Packed, global_scale_of, quantize_matrix
from nvfp4.spec.quantize import dequantize, round_trip


class LayerError(NamedTuple):
    """Relative errors of a layer's weight and output, with rtn and with the method used.

    They are norms of differences, divided by the norm without quantization. The output's is on
    tokens of the calibration text, whose activations are in 4 bits as well in W4A4; None without
    a text. tokens: how many reached the layer. note: why another method was used, or "".
    """

    layer: str
    weight_rtn: float
    weight: float
    output_rtn: float | None = None
    output: float | None = None
    tokens: int = 0
    note: str = ""


class Operands(NamedTuple):
    """A layer's weight [N, K] and inputs [T, K], float32."""

    w: Tensor
    x: Tensor


def decoded(packed: Packed, p: Tensor) -> Tensor:
    """The values of a packed weight, float32 [N, K]."""
    n, half_k = packed.data.shape
    out = torch.empty(n, 2 * half_k, dtype=torch.float32, device=packed.data.device)
    dequantize(*packed, p.view(-1), out)
    return out


def weight_error(layer: str, w: Tensor, quantized: Tensor) -> LayerError:
    return LayerError(layer, relative(_rtn(w), w), relative(quantized, w))


def layer_error(
    layer: str, before: Operands, after: Operands, quantized: Tensor, quantizes_activations: bool
) -> LayerError:
    """Measure a layer before its method's factors by rtn, and after them with `quantized`.

    before, after: the operands without and with factors. quantized: after.w as it was quantized.
    Without tokens only the weights' errors are measured.
    """

    def error(operands: Operands, w: Tensor) -> float:
        x = round_trip(operands.x) if quantizes_activations else operands.x
        return relative(x @ w.T, operands.x @ operands.w.T)

    rtn = _rtn(before.w)
    errors = relative(rtn, before.w), relative(quantized, after.w)
    if not len(before.x):
        return LayerError(layer, *errors)
    return LayerError(layer, *errors, error(before, rtn), error(after, quantized))


def _rtn(w: Tensor) -> Tensor:
    p = global_scale_of([w], RTN)
    return decoded(quantize_matrix(w, p, RTN), p)


def relative(got: Tensor, want: Tensor) -> float:
    """The norm of a difference, divided by that of what is wanted; 0 if that is 0."""
    norm = want.norm()
    return ((got - want).norm() / norm).item() if norm > 0 else 0.0
