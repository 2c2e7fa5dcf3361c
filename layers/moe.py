"""A mixture of experts with NVFP4 weights: all of them, or one rank's."""

from collections.abc import Iterable

import torch
from torch import Tensor

from nvfp4.ahead.warmup import compile_ahead, moe_workloads, routed, run_once
from nvfp4.layers.module import PackedModule
from nvfp4.layers.swiglu_mlp import glu_repr
from nvfp4.ops.quantize import quantize_weight
from nvfp4.ops.quantize_experts import quantize_experts
from nvfp4.spec.glu import SILU
from nvfp4.tensors import ExpertWeights, concatenate, stack_experts


class MoE(PackedModule):
    """The experts of a mixture through torch.ops.nvfp4.moe: tokens x [M, H], topk_weights and
    topk_ids [M, top_k], to [M, H] in x's dtype. The router is the model's own.

    w13 is gate and up in one, [E, 2I, H]: gate's rows first, then up's, the order of checkpoints.
    No kernel here wants them interleaved; layers.deinterleave_gate_up undoes that at load.

    Buffers: w13 uint8 [E, 2I, H/2], w2 uint8 [E, H, I/2]; w13_scales, w2_scales float8_e4m3fn,
    each expert's swizzled; w13_global_scale float32 [E] or [E, 2] (gate and up each their own),
    w2_global_scale [E]; x_global_scale float32 [] and h_global_scale (of act(gate) * up) [] or [E],
    or None (dynamic, per row).

    Expert parallelism: a rank holds the experts expert_offset .. expert_offset + E - 1 and gives
    their part of the sum; ids of others (and -1) contribute nothing. The ranks' outputs are to be
    added. global_num_experts: over all ranks, for the choice of tiles; 0: these are all.
    """

    w13: Tensor
    w13_scales: Tensor
    w13_global_scale: Tensor
    w2: Tensor
    w2_scales: Tensor
    w2_global_scale: Tensor
    x_global_scale: Tensor | None
    h_global_scale: Tensor | None

    def __init__(
        self,
        w13: ExpertWeights,
        w2: ExpertWeights,
        x_global_scale: Tensor | None = None,
        h_global_scale: Tensor | None = None,
        expert_offset: int = 0,
        swiglu_limit: float | None = None,
        activation: str = SILU,
        backend: str = "",
        global_num_experts: int = 0,
    ) -> None:
        super().__init__(backend)
        self.expert_offset = expert_offset
        self.global_num_experts = global_num_experts
        self.swiglu_limit = swiglu_limit
        self.activation = activation
        self._register(
            w13=w13.data,
            w13_scales=w13.scales,
            w13_global_scale=w13.global_scale,
            w2=w2.data,
            w2_scales=w2.scales,
            w2_global_scale=w2.global_scale,
            x_global_scale=x_global_scale,
            h_global_scale=h_global_scale,
        )
        none = torch.empty(0, 1, dtype=torch.int64)
        self._check(torch.empty(0, w13.shape[-1], dtype=torch.bfloat16), none.float(), none)

    @classmethod
    def from_float(
        cls,
        gate: Tensor,
        up: Tensor,
        down: Tensor,
        x_global_scale: Tensor | None = None,
        h_global_scale: Tensor | None = None,
        expert_offset: int = 0,
        swiglu_limit: float | None = None,
        activation: str = SILU,
        backend: str = "",
    ) -> "MoE":
        """Quantize gate and up [E, I, H] and down [E, H, I], each expert's each with its own global
        scale; H and I multiples of 16.
        """
        if gate.dim() != 3 or gate.shape != up.shape or down.shape != gate.mT.shape:
            got = [list(w.shape) for w in (gate, up, down)]
            need = "gate and up [E, I, H] and down [E, H, I]"
            raise ValueError(f"nvfp4.layers.MoE.from_float: needs {need}, got {got}")
        # Expert by expert: gate and up in floats are never copied into one.
        w13 = stack_experts(
            [
                concatenate([quantize_weight(part.detach(), backend=backend) for part in pair])
                for pair in zip(gate, up, strict=True)
            ]
        )
        w2 = quantize_experts(down.detach(), backend=backend)
        return cls(
            w13,
            w2,
            x_global_scale,
            h_global_scale,
            expert_offset,
            swiglu_limit,
            activation,
            backend,
        )

    @property
    def experts(self) -> int:
        """How many are held here."""
        return self.w13.shape[0]

    def local(self, rank: int, world_size: int) -> "MoE":
        """What one of world_size ranks holds: its experts copied, so that the rest can be freed.

        Raises:
            ValueError: the experts cannot be shared out evenly, or there is no such rank.
        """
        if world_size < 1 or self.experts % world_size:
            need = f"a world_size that divides the {self.experts} experts"
            raise ValueError(f"nvfp4.layers.MoE.local: needs {need}, got {world_size}")
        if not 0 <= rank < world_size:
            need = f"a rank from 0 to {world_size - 1}"
            raise ValueError(f"nvfp4.layers.MoE.local: needs {need}, got {rank}")
        count = self.experts // world_size
        first = rank * count
        w13, w2 = (_copy(weights.slice(first, count)) for weights in self.packed())
        h = self.h_global_scale
        return MoE(
            w13,
            w2,
            self.x_global_scale,
            h if h is None or h.numel() == 1 else h[first : first + count].clone(),
            self.expert_offset + first,
            self.swiglu_limit,
            self.activation,
            self.backend,
            self.global_num_experts or self.experts,
        )

    def packed(self) -> tuple[ExpertWeights, ExpertWeights]:
        """w13 and w2, as nvfp4.moe takes them."""
        return (
            ExpertWeights(self.w13, self.w13_scales, self.w13_global_scale),
            ExpertWeights(self.w2, self.w2_scales, self.w2_global_scale),
        )

    def forward(self, x: Tensor, topk_weights: Tensor, topk_ids: Tensor) -> Tensor:
        return torch.ops.nvfp4.moe(
            x,
            topk_weights,
            topk_ids,
            self.w13,
            self.w13_scales,
            self.w13_global_scale,
            self.w2,
            self.w2_scales,
            self.w2_global_scale,
            self.x_global_scale,
            self.h_global_scale,
            self.expert_offset,
            self.global_num_experts,
            self.swiglu_limit,
            self.activation,
            self.backend,
        )

    def warmup(
        self, max_tokens: int, top_k: int, dtypes: Iterable[torch.dtype] = (torch.bfloat16,)
    ) -> list[str]:
        """Compile, and on a GPU run once, what calls of up to max_tokens tokens with top_k choices
        need: after it they can be captured in a CUDA graph. Returns what was compiled ahead, a line
        a kernel.
        """
        dtypes, device = tuple(dtypes), self.w13.device
        hidden, intermediate = self.w2.shape[1], 2 * self.w2.shape[2]
        known = self.h_global_scale is not None
        works = moe_workloads(
            self.experts, hidden, intermediate, max_tokens, top_k, dtypes, glu=known
        )
        done = compile_ahead(works, device, self.backend)
        call = routed(self, self.experts, top_k, self.expert_offset)
        run_once(call, hidden, max_tokens, dtypes, device)
        return done

    def extra_repr(self) -> str:
        offset = f", expert_offset={self.expert_offset}" if self.expert_offset else ""
        sizes = f"hidden={self.w2.shape[1]}, intermediate={2 * self.w2.shape[2]}"
        return f"experts={self.experts}{offset}, {sizes}, {glu_repr(self)}"


def _copy(weights: ExpertWeights) -> ExpertWeights:
    return ExpertWeights(weights.data.clone(), weights.scales.clone(), weights.global_scale.clone())


def deinterleave_gate_up(w: Tensor) -> Tensor:
    """Rows that alternate, gate, up, gate, up, as some checkpoints have them -> gate's rows, then
    up's: [..., 2I, C], floats, packed data or linear scales alike (biases as [..., 2I, 1]).
    """
    if w.dim() < 2 or w.shape[-2] % 2:
        need = "shape [..., 2I, C]"
        raise ValueError(f"nvfp4.layers.deinterleave_gate_up: w needs {need}, got {list(w.shape)}")
    return w.unflatten(-2, (-1, 2)).transpose(-3, -2).flatten(-3, -2)
