"""What a mixture of experts multiplies: several weights, and rows grouped by expert."""

from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from nvfp4.spec.format import LINEAR, SCALE_DTYPE
from nvfp4.spec.grouped import unswizzle_grouped_scales
from nvfp4.tensors.quantized import QuantizedTensor


@dataclass(frozen=True, eq=False)
class ExpertWeights:
    """NVFP4 weights [E, N, K].

    data: uint8 [E, N, K/2]; scales: float8_e4m3fn [E, Np, Kp], swizzled expert by expert.
    global_scale: float32 [E], or [E, S], one per equal segment of N (gate and up: S = 2).
    """

    data: Tensor
    scales: Tensor
    global_scale: Tensor

    @property
    def shape(self) -> torch.Size:
        """The logical shape [E, N, K]."""
        return torch.Size((*self.data.shape[:2], 2 * self.data.shape[2]))

    @property
    def nbytes(self) -> int:
        return self.data.nbytes + self.scales.nbytes + self.global_scale.nbytes

    def __getitem__(self, expert: int) -> QuantizedTensor:
        """One expert's weight [N, K]."""
        return QuantizedTensor(self.data[expert], self.scales[expert], self.global_scale[expert])

    def slice(self, first: int, count: int) -> "ExpertWeights":
        """The experts first .. first + count - 1, as one rank of several holds them."""
        part = slice(first, first + count)
        return ExpertWeights(self.data[part], self.scales[part], self.global_scale[part])

    def to(self, device: torch.device | str) -> "ExpertWeights":
        return replace(
            self,
            data=self.data.to(device),
            scales=self.scales.to(device),
            global_scale=self.global_scale.to(device),
        )

    def __reduce__(self) -> tuple:
        # pickle cannot read a float8 tensor back (torch.save can), so the scales travel as bytes.
        return _from_bytes, (self.data, self.scales.view(torch.uint8), self.global_scale)


def _from_bytes(data: Tensor, scales: Tensor, global_scale: Tensor) -> ExpertWeights:
    return ExpertWeights(data, scales.view(SCALE_DTYPE), global_scale)


@dataclass(frozen=True, eq=False)
class ExpertRows:
    """NVFP4 rows [R, K], expert after expert (spec/grouped.py).

    data: uint8 [R, K/2]; scales: float8_e4m3fn, grouped; row_scale: float32 [R], each row's global
    scale; offsets: int32 [E+1]. Rows from offsets[E] on are unassigned.
    """

    data: Tensor
    scales: Tensor
    row_scale: Tensor
    offsets: Tensor

    @property
    def shape(self) -> torch.Size:
        """The logical shape [R, K]."""
        return torch.Size((self.data.shape[0], 2 * self.data.shape[1]))

    @property
    def experts(self) -> int:
        return self.offsets.shape[0] - 1

    def linear_scales(self) -> Tensor:
        """The block scales as [R, K/16]; unassigned rows have zeros."""
        return unswizzle_grouped_scales(self.scales, self.offsets, *self.shape)

    def dequantize(self, out_dtype: torch.dtype = torch.bfloat16, backend: str = "") -> Tensor:
        """The values, [R, K] in out_dtype; unassigned rows have zeros."""
        # A scale of 1 where there is none: the op wants scales that are positive.
        p = torch.where(self.row_scale > 0, self.row_scale, 1.0)
        return torch.ops.nvfp4.dequantize(
            self.data, self.linear_scales(), p, out_dtype, LINEAR, backend
        )


def stack_experts(experts: Sequence[QuantizedTensor]) -> ExpertWeights:
    """Weights [N, K] of one shape -> [E, N, K]; a fused one (nvfp4.concatenate) keeps its parts'
    global scales. For w13 that is concatenate([gate, up]) of each expert.
    """
    if not experts or len({(w.shape, w.global_scale.numel()) for w in experts}) != 1:
        got = [(list(w.shape), w.global_scale.numel()) for w in experts]
        raise ValueError(
            f"nvfp4.stack_experts: experts needs weights of one shape and number of segments, "
            f"at least one, got {got}"
        )
    if len(experts[0].shape) != 2:
        raise ValueError(
            f"nvfp4.stack_experts: experts needs weights [N, K], got {list(experts[0].shape)}"
        )
    scales = [w.swizzled().scales for w in experts]
    p = torch.stack([w.global_scale.reshape(-1) for w in experts])
    return ExpertWeights(
        torch.stack([w.data for w in experts]),
        torch.stack([s.view(torch.uint8) for s in scales]).view(SCALE_DTYPE),
        p if p.shape[1] > 1 else p[:, 0],
    )
