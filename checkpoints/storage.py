"""The forms in which checkpoints store weights, and how each is read as floats.

A form is recognized by the names, dtypes and shapes of a weight's tensors. No configuration is
needed, which makers write in many ways.

    form    data                                     scales
    NVFP4   uint8 [N, K/2]                           E4M3 [N, K/16], and a global one
    MXFP4   uint8 or int8 [N, K/2], [N, K/32, 16]    E8M0 [N, K/32]
    MXFP8   E4M3 or uint8 [N, K]                     E8M0 [N, K/32]
    FP8     E4M3 [N, K]                              one, one a row, or one a block of the matrix
    INT8    int8 [N, K], or int32 [N, K/4]           one a row, or one a group of a row
    INT4    int32 [N, K/8], or uint8 [N/2, K]        one a group of a row

Each may have experts as a first dimension. E8M0 scales are uint8 or float8_e8m0fnu. Scales of other
forms are floats.
"""

from collections.abc import Callable, Iterable
from typing import NamedTuple

import torch
from torch import Tensor

from nvfp4.checkpoints.files import FLOATS, TensorFiles, TensorSpec
from nvfp4.checkpoints.schemes import PRE_QUANT_SCALE
from nvfp4.spec.format import BLOCK
from nvfp4.spec.packing import unpack

NVFP4, MXFP4, MXFP8, FP8, INT8, INT4 = "NVFP4", "MXFP4", "MXFP8", "FP8", "INT8", "INT4"

FLOAT_DTYPE = torch.bfloat16
"""The dtype to which weights are dequantized; the products are rounded to it once."""

MX_BLOCK = 32
"""The elements of a row that share an E8M0 scale."""

E8M0 = ("U8", "F8_E8M0")
INTEGERS = ("U8", "I8", "I32")
QUANTIZED_DTYPES = (*INTEGERS, "F8_E4M3")
"""The dtypes, in safetensors, of the elements of a quantized weight."""

PACKED, BLOCKS = "_packed", "_blocks"
"""Endings of the names of data, where a weight in floats has none."""

SCALES = ("scale", "scale_inv", "weight_scale", "weight_scale_inv", "scales")
GLOBAL_SCALES = ("scale_2", "global_scale", "weight_scale_2", "weight_global_scale")
ZEROS, ORDER, SHAPE = "zero_point", "g_idx", "shape"
INPUT_SCALES = ("input_scale", "input_scale_2", "input_global_scale")
"""The global scales of a layer's input in NVFP4."""
IGNORED = (
    *INPUT_SCALES, "input_scale_inv", "input_zero_point", "activation_scale", "output_scale",
)  # fmt: skip
"""Tensors about a layer's input or output, which do not change its weight."""

E2M1 = torch.tensor(
    [0, 0.5, 1, 1.5, 2, 3, 4, 6, -0.0, -0.5, -1, -1.5, -2, -3, -4, -6],
    dtype=torch.float32,
    device="cpu",
)
"""The values of the 16 codes."""


class Stored(NamedTuple):
    """A weight that is stored in a quantized form.

    form: one of the constants above.
    data: the name of the tensor with its elements.
    parts: the names of all its tensors, by their roles ("scales", "global", ...), data among them.
    shape: that of the weight in floats.
    """

    form: str
    data: str
    parts: dict[str, str]
    shape: tuple[int, ...]

    @property
    def spec(self) -> TensorSpec:
        return TensorSpec(self.shape, FLOAT_DTYPE)


def stored_weights(files: TensorFiles, names: Iterable[str] | None = None) -> dict[str, Stored]:
    """Find the quantized weights of a checkpoint, by the names that they have in floats.

    A layer's weight is found under a.weight, and the experts of a block in one tensor under
    a.experts.down_proj. What does not fit any form is left out. `names` are the tensors to look
    at: all of them unless they are given.
    """
    found = {}
    for name in files.names if names is None else names:
        if files.dtype(name) in QUANTIZED_DTYPES:
            weight = name.removesuffix(PACKED).removesuffix(BLOCKS)
            parts = _parts(files, name, weight)
            if "scales" in parts and (form := _form(files, parts)) is not None:
                found[weight] = Stored(form, name, parts, _shape(files, form, parts))
    return found


def _parts(files: TensorFiles, data: str, weight: str) -> dict[str, str]:
    """The tensors of a weight by their roles."""
    module = weight.rpartition(".")[0]
    layer = weight.endswith(".weight")
    parts = {"data": data}
    roles: tuple[tuple[str, Iterable[str]], ...] = (
        ("scales", SCALES),
        ("global", GLOBAL_SCALES),
        ("zeros", [ZEROS, f"weight_{ZEROS}"]),
        ("order", [ORDER, f"weight_{ORDER}"]),
        ("shape", [SHAPE, f"weight_{SHAPE}"]),
        ("pre_quant", [PRE_QUANT_SCALE]),
        *((leaf, [leaf]) for leaf in IGNORED),
    )
    for role, leaves in roles:
        for leaf in leaves:
            for name in (f"{module}.{leaf}",) if layer else (f"{weight}_{leaf}",):
                if name in files and name != data:
                    parts.setdefault(role, name)
    return parts


def _form(files: TensorFiles, parts: dict[str, str]) -> str | None:
    """The form of a weight with these tensors, or None."""
    data, scales = files.shape(parts["data"]), files.shape(parts["scales"])
    dtype, scale_dtype = files.dtype(parts["data"]), files.dtype(parts["scales"])
    if len(data) < 2:
        return None
    if "global" in parts or dtype == "U8" and scale_dtype == "F8_E4M3":
        return NVFP4 if dtype == "U8" and _nvfp4_shape(data, scales) else None
    if scale_dtype in E8M0 and len(scales) >= 2:
        blocked = parts["data"].endswith(BLOCKS)
        if dtype in ("U8", "I8") and (
            blocked or data == (*scales[:-1], MX_BLOCK // 2 * scales[-1])
        ):
            return MXFP4 if not blocked or data == (*scales, MX_BLOCK // 2) else None
        if dtype in ("U8", "F8_E4M3") and data == (*scales[:-1], MX_BLOCK * scales[-1]):
            return MXFP8
    if dtype == "F8_E4M3" and scale_dtype in (*FLOATS, "F8_E8M0"):
        return FP8
    if scale_dtype not in FLOATS:
        return None
    if dtype == "U8":
        return INT4 if len(scales) > 1 and data[-2] * 2 == scales[-2] else None
    if dtype == "I32" and (shape := _given_shape(files, parts)) is not None:
        return {8: INT4, 4: INT8}.get(-(-shape[-1] // data[-1]))
    return {"I8": INT8, "I32": INT4}.get(dtype)


def _nvfp4_shape(data: tuple[int, ...], scales: tuple[int, ...]) -> tuple[int, ...] | None:
    """The shape of NVFP4 weights with data and scales of these shapes; None if they do not fit.

    Experts in one tensor may have K before N, as x W has.
    """
    if data == (*scales[:-1], scales[-1] * BLOCK // 2):
        return (*data[:-1], 2 * data[-1])
    if len(data) == 3 and data == (scales[0], scales[1] * BLOCK // 2, scales[2]):
        return (data[0], 2 * data[1], data[2])
    return None


def _given_shape(files: TensorFiles, parts: dict[str, str]) -> tuple[int, ...] | None:
    return tuple(files.read(parts["shape"]).tolist()) if "shape" in parts else None


def _shape(files: TensorFiles, form: str, parts: dict[str, str]) -> tuple[int, ...]:
    data = files.shape(parts["data"])
    if form == NVFP4:
        return _nvfp4_shape(data, files.shape(parts["scales"])) or data
    if form == MXFP4 and parts["data"].endswith(BLOCKS):
        experts, n, blocks, _ = data
        return (experts, blocks * MX_BLOCK, n)  # gpt-oss computes x W
    if form == MXFP4:
        return (*data[:-1], 2 * data[-1])
    if files.dtype(parts["data"]) == "I32":
        return _given_shape(files, parts) or (*data[:-1], 8 * data[-1])
    if form == INT4:
        return (*data[:-2], 2 * data[-2], data[-1])
    return data


def read_floats(files: TensorFiles, stored: Stored) -> Tensor:
    """Dequantize a weight to bfloat16; AWQ's factors of its input are multiplied into it.

    Raises:
        ValueError: a tensor has another shape than the form needs, or a value is NaN or Inf.
    """
    tensors = {role: files.read(name) for role, name in stored.parts.items()}
    try:
        weight = _READERS[stored.form](tensors, stored)
    except RuntimeError as error:
        got = ", ".join(f"{name} {list(files.shape(name))}" for name in stored.parts.values())
        where = files.where(stored.data)
        raise ValueError(f"{where} needs tensors of an {stored.form} weight, got {got}") from error
    if "pre_quant" in tensors:
        weight = weight * tensors["pre_quant"].float()
    weight = weight.to(FLOAT_DTYPE)
    if not weight.isfinite().all():
        raise ValueError(f"{files.where(stored.data)} needs finite values, got NaN or Inf")
    return weight


def _read_nvfp4(tensors: dict[str, Tensor], stored: Stored) -> Tensor:
    data, scales = tensors["data"], tensors["scales"]
    transposed = data.shape[-1] == scales.shape[-1]
    if transposed:
        data, scales = data.mT, scales.mT
    weight = E2M1[unpack(data).int()] * _spread(
        scales.float(), (*data.shape[:-1], 2 * data.shape[-1])
    )
    p = tensors["global"].float()
    if stored.parts["global"].endswith("global_scale"):
        p = torch.reciprocal(p)
    weight *= _spread(p, weight.shape)
    return weight.mT if transposed else weight


def _read_mxfp4(tensors: dict[str, Tensor], stored: Stored) -> Tensor:
    data, scales = tensors["data"].view(torch.uint8), _scales(tensors)
    blocked = data.dim() > scales.dim()
    if blocked:
        data = data.flatten(-2)
    weight = E2M1[unpack(data).int()]
    weight *= _spread(scales, weight.shape)
    return weight.mT.contiguous() if blocked else weight


def _read_fp8(tensors: dict[str, Tensor], stored: Stored) -> Tensor:
    weight = tensors["data"].view(torch.float8_e4m3fn).float()
    return weight * _spread(_scales(tensors), weight.shape)


def _read_integers(tensors: dict[str, Tensor], stored: Stored) -> Tensor:
    data, scales = tensors["data"], _scales(tensors)
    bits = 4 if stored.form == INT4 else 8
    if data.dtype == torch.int32:
        codes = _unpacked(data, bits, stored.shape[-1])
    elif data.dtype == torch.uint8:
        codes = unpack(data.mT).mT.int()  # ModelOpt packs two rows, in two's complement
        codes -= (codes > 7).int() * 16
    else:
        codes = data.int()
    if "zeros" in tensors:
        zeros = tensors["zeros"]
        if zeros.dtype == torch.int32:
            zeros = _unpacked(zeros.mT, bits, stored.shape[-2]).mT
        scales, zeros = (
            _of_columns(each, stored.shape, tensors.get("order")) for each in (scales, zeros.int())
        )
        return (codes - zeros).float() * scales
    return codes.float() * _of_columns(scales, stored.shape, tensors.get("order"))


def _of_columns(groups: Tensor, shape: tuple[int, ...], order: Tensor | None) -> Tensor:
    """The value of each element's group; `order` has the group of each column, as GPTQ sorts."""
    return _spread(groups, shape) if order is None else groups[..., order.long()]


def _unpacked(data: Tensor, bits: int, columns: int) -> Tensor:
    """Unpack int32 words of offset integers, the first element in the lowest bits."""
    shifts = torch.arange(0, 32, bits, dtype=torch.int32)
    codes = data[..., None] >> shifts & (1 << bits) - 1
    return codes.flatten(-2)[..., :columns] - (1 << bits - 1)


def _scales(tensors: dict[str, Tensor]) -> Tensor:
    """The scales in float32; E8M0 has the exponent of a power of two, and 255 for NaN."""
    scales = tensors["scales"]
    return (scales.view(torch.float8_e8m0fnu) if scales.dtype == torch.uint8 else scales).float()


def _spread(scales: Tensor, shape: Iterable[int]) -> Tensor:
    """Repeat the scales of blocks for their elements, in a weight [..., N, K].

    A block's size is that power of two which gives so many blocks. The last block may be cut off.
    """
    shape = tuple(shape)
    if scales.dim() == 4 and len(shape) == 2:  # ModelOpt keeps the blocks' own dimensions, of 1
        scales = scales[:, 0, :, 0]
    if scales.numel() == 1:
        return scales.reshape(())
    scales = scales.reshape(*scales.shape, *[1] * (len(shape) - scales.dim()))
    for dim, size in enumerate(shape):
        blocks = scales.shape[dim]
        if blocks not in (1, size):
            scales = scales.repeat_interleave(_block(size, blocks), dim).narrow(dim, 0, size)
    return scales


def _block(size: int, blocks: int) -> int:
    for block in (2**exponent for exponent in range(size.bit_length())):
        if -(-size // block) == blocks:
            return block
    if size % blocks:
        raise RuntimeError(f"{blocks} blocks of {size} elements have no common size")
    return size // blocks


_READERS: dict[str, Callable[[dict[str, Tensor], Stored], Tensor]] = {
    NVFP4: _read_nvfp4,
    MXFP4: _read_mxfp4,
    MXFP8: _read_fp8,
    FP8: _read_fp8,
    INT8: _read_integers,
    INT4: _read_integers,
}


class FloatTensors:
    """A checkpoint's tensors as they are in floats, each dequantized when it is read.

    The tensors of a quantized weight give one tensor, under the name that it has in floats. Other
    tensors are as the files have them.
    """

    def __init__(self, files: TensorFiles) -> None:
        self.files = files
        self.stored = stored_weights(files)
        hidden = {name for stored in self.stored.values() for name in stored.parts.values()}
        self.names = (*self.stored, *(name for name in files.names if name not in hidden))

    def shape(self, name: str) -> tuple[int, ...]:
        return self.stored[name].shape if name in self.stored else self.files.shape(name)

    def spec(self, name: str) -> TensorSpec:
        return self.stored[name].spec if name in self.stored else self.files.spec(name)

    def where(self, name: str) -> str:
        """Name the tensor and its file, for a message."""
        return self.files.where(self.stored[name].data if name in self.stored else name)

    def read(self, name: str) -> Tensor:
        if name in self.stored:
            return read_floats(self.files, self.stored[name])
        return self.files.read(name)
