"""A quantized tensor: its parts together, and what can be said of them without a kernel."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from math import gcd, prod

import torch
from torch import Tensor

from nvfp4.spec.format import BLOCK, LINEAR, NAN_SCALE, SCALE_DTYPE, SWIZZLED
from nvfp4.spec.swizzle import scales_shape, swizzle_scales, unswizzle_scales


@dataclass(frozen=True, eq=False)
class QuantizedTensor:
    """An NVFP4 tensor [..., K].

    data: uint8 [..., K/2], even k in the low nibble.
    scales: float8_e4m3fn, "linear" [..., K/16] or "swizzled" [Mp, Kp] (spec/swizzle.py).
    global_scale: float32 decode multiplier, [] or [1]; [M], one per row; or [S], one per equal
        segment of the rows (a fused weight).
    """

    data: Tensor
    scales: Tensor
    global_scale: Tensor
    scale_layout: str = SWIZZLED

    @property
    def shape(self) -> torch.Size:
        """The logical shape [..., K]."""
        return torch.Size((*self.data.shape[:-1], 2 * self.data.shape[-1]))

    @property
    def rows(self) -> int:
        return prod(self.data.shape[:-1])

    @property
    def device(self) -> torch.device:
        return self.data.device

    @property
    def nbytes(self) -> int:
        return self.data.nbytes + self.scales.nbytes + self.global_scale.nbytes

    def to(self, device: torch.device | str) -> "QuantizedTensor":
        return replace(
            self,
            data=self.data.to(device),
            scales=self.scales.to(device),
            global_scale=self.global_scale.to(device),
        )

    def __reduce__(self) -> tuple:
        # pickle cannot read a float8 tensor back (torch.save can), so the scales travel as bytes.
        return _from_bytes, (
            self.data,
            self.scales.view(torch.uint8),
            self.global_scale,
            self.scale_layout,
        )

    def linear_scales(self) -> Tensor:
        """The block scales as [M, K/16]."""
        k = self.shape[-1]
        if self.scale_layout == LINEAR:
            return self.scales.reshape(self.rows, k // BLOCK)
        return unswizzle_scales(self.scales, self.rows, k)

    def swizzled(self) -> "QuantizedTensor":
        """The tensor with its scales as the GEMMs read them; itself if they are so already."""
        if self.scale_layout == SWIZZLED:
            return self
        return replace(self, scales=swizzle_scales(self.linear_scales()), scale_layout=SWIZZLED)

    def row_scales(self) -> Tensor:
        """The global scale as [] or [1], or spread over the rows as [M]."""
        p = self.global_scale
        return p if p.numel() == 1 else p.repeat_interleave(self.rows // p.numel())

    def dequantize(self, out_dtype: torch.dtype = torch.bfloat16, backend: str = "") -> Tensor:
        """The values, [..., K] in out_dtype."""
        return torch.ops.nvfp4.dequantize(
            self.data, self.scales, self.row_scales(), out_dtype, self.scale_layout, backend
        )

    def validate(self) -> "QuantizedTensor":
        """Check the values too (it reads the tensors, so on a GPU it synchronizes); returns self.

        Raises:
            ValueError: a buffer's shape is not its layout's; a scale byte is NaN or negative; a
                padding byte is not 0x00; a global scale is not finite and positive.
        """
        need = scales_shape(self.shape, self.scale_layout)
        if tuple(self.scales.shape) != tuple(need):
            raise ValueError(
                f"scales needs the {self.scale_layout} shape {list(need)}, "
                f"got {list(self.scales.shape)}"
            )
        p = self.global_scale
        if p.numel() == 0 or self.rows % p.numel():
            raise ValueError(
                f"global_scale needs a size that divides the {self.rows} rows, got {list(p.shape)}"
            )
        if not bool(((p > 0) & (p < torch.inf)).all()):
            raise ValueError(f"global_scale needs finite positive values, got {p.tolist()}")
        linear = self.linear_scales()
        if bad := int((linear.view(torch.uint8) >= NAN_SCALE).sum()):
            raise ValueError(f"scales needs bytes 0x00 to 0x7E, got {bad} that are NaN or negative")
        if self.scale_layout == SWIZZLED:
            clean = swizzle_scales(linear).view(torch.uint8)
            if not torch.equal(clean, self.scales.view(torch.uint8)):
                raise ValueError("scales needs padding bytes 0x00, got others")
        return self


def _from_bytes(
    data: Tensor, scales: Tensor, global_scale: Tensor, scale_layout: str
) -> QuantizedTensor:
    return QuantizedTensor(data, scales.view(SCALE_DTYPE), global_scale, scale_layout)


def concatenate(parts: Sequence[QuantizedTensor]) -> QuantizedTensor:
    """Stack matrices [N_i, K] along N into a fused weight whose parts keep their global scales.

    The result's global_scale is [S], one per segment of gcd(N_i) rows; its scales are swizzled.
    """
    if not parts:
        raise ValueError("nvfp4.concatenate: parts needs at least one tensor, got none")
    if len({part.shape[1:] for part in parts}) != 1 or any(len(part.shape) != 2 for part in parts):
        raise ValueError(
            "nvfp4.concatenate: parts needs [N, K] with one K, "
            f"got {[list(part.shape) for part in parts]}"
        )
    width = gcd(*(part.rows // part.global_scale.numel() for part in parts))
    segments = [
        p.reshape(-1).repeat_interleave(part.rows // width // p.numel())
        for part, p in ((part, part.global_scale) for part in parts)
    ]
    scales = torch.cat([part.linear_scales().view(torch.uint8) for part in parts])
    return QuantizedTensor(
        torch.cat([part.data for part in parts]),
        swizzle_scales(scales.view(parts[0].scales.dtype)),
        torch.cat(segments),
    )
