"""A mixture of experts with NVFP4 weights: all of them, or one rank's."""

from collections.abc import Iterable

import torch
from torch import Tensor

from nvfp4.ahead.warmup import compile_ahead, moe_workloads, routed, run_once
from nvfp4.layers.gated import GatedModule
from nvfp4.layers.swiglu_mlp import glu_repr
from nvfp4.ops.quantize import quantize_weight
from nvfp4.ops.quantize_experts import quantize_experts
from nvfp4.spec.format import W4A4, W4A16
from nvfp4.spec.glu import SILU
from nvfp4.spec.scale_rules import AMAX_OVER_SIX
from nvfp4.tensors import ExpertWeights, concatenate, stack_experts


class MoE(GatedModule):
    """The experts of a mixture, with NVFP4 weights: tokens [M, H] to [M, H] in their dtype.

    It calls torch.ops.nvfp4.moe with topk_weights and topk_ids [M, top_k] from the model's router.
    w13 holds gate and up, [E, 2I, H]: first the rows of gate, then those of up, as in checkpoints.
    Where they alternate, layers.deinterleave_gate_up sorts them at load. With relu2 there is no
    gate, and w13 is up's [E, I, H].

    `activation_format` is an attribute that may be set later: "nvfp4" quantizes tokens and
    act(gate) * up on the way (W4A4), and "bf16" leaves both in 16 bits (W4A16). So is `scale_rule`,
    how the block scales of both are chosen: "amax_over_six" or "four_over_six".

    Buffers:
        w13: uint8 [E, 2I, H/2].
        w2: uint8 [E, H, I/2].
        w13_scales, w2_scales: float8_e4m3fn, swizzled expert by expert.
        w13_global_scale: float32 [E], or [E, 2] with one for gate and one for up.
        w2_global_scale: float32 [E].
        x_global_scale: float32 [], or None for a dynamic scale per row.
        h_global_scale: float32 [] or [E], the scale of act(gate) * up; None is dynamic, per row.
        w13_bias, w2_bias: [E, 2I] (with relu2 [E, I]) and [E, H], any float dtype, or None.

    Expert parallelism: a rank holds the experts expert_offset .. expert_offset + E - 1 and returns
    their part of the sum. Other ids, -1 among them, contribute nothing. The caller adds the ranks'
    outputs. global_num_experts counts the experts of all ranks, for the choice of tiles; 0 means
    that there are no others.
    """

    def __init__(
        self,
        w13: ExpertWeights,
        w2: ExpertWeights,
        x_global_scale: Tensor | None = None,
        h_global_scale: Tensor | None = None,
        w13_bias: Tensor | None = None,
        w2_bias: Tensor | None = None,
        expert_offset: int = 0,
        global_num_experts: int = 0,
        swiglu_limit: float | None = None,
        scale_rule: str = AMAX_OVER_SIX,
        activation_format: str = W4A4,
        activation: str = SILU,
        backend: str = "",
    ) -> None:
        scales, biases = (x_global_scale, h_global_scale), (w13_bias, w2_bias)
        how = swiglu_limit, scale_rule, activation, backend
        super().__init__(w13, w2, scales, biases, *how)
        self.expert_offset = expert_offset
        self.global_num_experts = global_num_experts
        self.activation_format = activation_format
        none = torch.empty(0, 1, dtype=torch.int64)
        self._check(torch.empty(0, w13.shape[-1], dtype=torch.bfloat16), none.float(), none)

    @classmethod
    def from_float(
        cls,
        gate: Tensor | None,
        up: Tensor,
        down: Tensor,
        x_global_scale: Tensor | None = None,
        h_global_scale: Tensor | None = None,
        w13_bias: Tensor | None = None,
        w2_bias: Tensor | None = None,
        expert_offset: int = 0,
        swiglu_limit: float | None = None,
        scale_rule: str = AMAX_OVER_SIX,
        activation_format: str = W4A4,
        activation: str = SILU,
        backend: str = "",
    ) -> "MoE":
        """Quantize gate and up [E, I, H] and down [E, H, I], with H and I multiples of 16.

        Each of the 3 E matrices gets its own global scale. gate is None where the activation
        (relu2) has none.
        """
        first = [up] if gate is None else [gate, up]
        if up.dim() != 3 or first[0].shape != up.shape or down.shape != up.mT.shape:
            got = [list(w.shape) for w in (*first, down)]
            need = f"{'' if gate is None else 'gate and '}up [E, I, H] and down [E, H, I]"
            raise ValueError(f"nvfp4.layers.MoE.from_float: needs {need}, got {got}")
        # Expert by expert, so that gate and up are never copied into one tensor of floats.
        w13 = stack_experts(
            [
                concatenate([quantize_weight(part.detach(), backend=backend) for part in parts])
                for parts in zip(*first, strict=True)
            ]
        )
        w2 = quantize_experts(down.detach(), backend=backend)
        return cls(
            w13,
            w2,
            x_global_scale,
            h_global_scale,
            w13_bias,
            w2_bias,
            expert_offset,
            0,
            swiglu_limit,
            scale_rule,
            activation_format,
            activation,
            backend,
        )

    @property
    def experts(self) -> int:
        """The number of experts held here."""
        return self.w13.shape[0]

    def local(self, rank: int, world_size: int) -> "MoE":
        """Copy the experts of one of world_size ranks, so that the others can be freed.

        Raises:
            ValueError: world_size does not divide the experts, or there is no such rank.
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
            h if h is None or h.numel() == 1 else _part(h, first, count),
            _part(self.w13_bias, first, count),
            _part(self.w2_bias, first, count),
            self.expert_offset + first,
            self.global_num_experts or self.experts,
            self.swiglu_limit,
            self.scale_rule,
            self.activation_format,
            self.activation,
            self.backend,
        )

    def packed(self) -> tuple[ExpertWeights, ExpertWeights]:
        """Return w13 and w2 in the form that nvfp4.moe takes."""
        return (
            ExpertWeights(self.w13, self.w13_scales, self.w13_global_scale),
            ExpertWeights(self.w2, self.w2_scales, self.w2_global_scale),
        )

    def forward(self, x: Tensor, topk_weights: Tensor, topk_ids: Tensor) -> Tensor:
        return torch.ops.nvfp4.moe(
            x,
            topk_weights,
            topk_ids,
            *self._tensors(),
            self.expert_offset,
            self.global_num_experts,
            self.swiglu_limit,
            self.scale_rule,
            self.activation_format,
            self.activation,
            self.backend,
        )

    def warmup(
        self, max_tokens: int, top_k: int, dtypes: Iterable[torch.dtype] = (torch.bfloat16,)
    ) -> list[str]:
        """Compile the kernels for calls of up to max_tokens tokens; on a GPU, also run them once.

        Such calls, with top_k experts a token, can then be captured in a CUDA graph. Returns a line
        for each kernel that was compiled ahead.
        """
        dtypes, device = tuple(dtypes), self.w13.device
        hidden, intermediate = self.w2.shape[1], 2 * self.w2.shape[2]
        known = self.h_global_scale is not None
        biases = _dtype(self.w13_bias), _dtype(self.w2_bias)
        sizes = self.experts, hidden, intermediate, max_tokens, top_k
        works = moe_workloads(*sizes, dtypes, known, self.scale_rule, self.activation, biases)
        # W4A16 has other kernels, which the calls below compile.
        done = compile_ahead(works, device, self.backend) if self.activation_format == W4A4 else []
        call = routed(self, self.experts, top_k, self.expert_offset)
        run_once(call, hidden, max_tokens, dtypes, device)
        return done

    def extra_repr(self) -> str:
        offset = f", expert_offset={self.expert_offset}" if self.expert_offset else ""
        w4a16 = f", activation_format={W4A16}" if self.activation_format == W4A16 else ""
        sizes = f"hidden={self.w2.shape[1]}, intermediate={2 * self.w2.shape[2]}"
        return f"experts={self.experts}{offset}, {sizes}, {glu_repr(self)}{w4a16}"


def _dtype(x: Tensor | None) -> torch.dtype | None:
    return None if x is None else x.dtype


def _part(x: Tensor | None, first: int, count: int) -> Tensor | None:
    """Copy what belongs to experts first up to first + count."""
    return None if x is None else x[first : first + count].clone()


def _copy(weights: ExpertWeights) -> ExpertWeights:
    return ExpertWeights(weights.data.clone(), weights.scales.clone(), weights.global_scale.clone())


def deinterleave_gate_up(w: Tensor) -> Tensor:
    """Sort the rows of w [..., 2I, C] from gate, up, gate, up, ... to all of gate, then all of up.

    w may hold floats, packed data or linear scales. Biases are given as [..., 2I, 1].
    """
    if w.dim() < 2 or w.shape[-2] % 2:
        need = "shape [..., 2I, C]"
        raise ValueError(f"nvfp4.layers.deinterleave_gate_up: w needs {need}, got {list(w.shape)}")
    return w.unflatten(-2, (-1, 2)).transpose(-3, -2).flatten(-3, -2)
