"""Mixtures of experts in vLLM, with expert and tensor parallelism."""

from collections.abc import Sequence
from itertools import product

import torch
from torch import Tensor
from torch.nn import Parameter
from vllm.model_executor.layers.fused_moe import FusedMoEMethodBase, RoutedExperts
from vllm.model_executor.layers.fused_moe.config import FusedMoEConfig
from vllm.model_executor.utils import set_weight_attrs

from nvfp4.ahead.warmup import moe_workloads
from nvfp4.backends.workload import Workload
from nvfp4.checkpoints import Format, Group
from nvfp4.integrations.vllm.loading import multipliers, needs_dtype, refused, validated
from nvfp4.integrations.vllm.warmup import compile_planned, plan, run_first
from nvfp4.layers import MoE
from nvfp4.spec.format import BLOCK, DATA_DTYPE, LINEAR, SCALE_DTYPE, W4A16
from nvfp4.spec.glu import GELU_TANH, RELU2, SILU, SWIGLU_OAI
from nvfp4.spec.swizzle import swizzle_scales
from nvfp4.tensors import ExpertWeights, QuantizedTensor

ACTIVATIONS = {
    "silu": SILU,
    "gelu_tanh": GELU_TANH,
    "swigluoai_uninterleave": SWIGLU_OAI,
    "relu2_no_mul": RELU2,
}
"""Ours by vLLM's names. Its "swigluoai" has gate and up in turn, and its "relu2" has a gate."""

ALPHA, BETA = 1.702, 1.0
"""The alpha and beta of spec/glu.py's SWIGLU_OAI."""

GATE_UP, UP, DOWN = ("w1", "w3"), ("w1",), ("w2",)
"""The names in vLLM of gate and up, the halves of w13; of up without a gate; and of down."""


class NvFp4ExpertsMethod(FusedMoEMethodBase):
    """The experts of a layer as one nvfp4.layers.MoE, in W4A4 or W4A16 as their group says.

    Each expert's gate and up have their own global scales. The experts' input is one tensor and is
    quantized once. Its calibrated scale is the largest of all experts' on all ranks, so every rank
    has the same. The scale between the two GEMMs is each expert's own. If one expert lacks it, all
    rows get dynamic scales.

    A rank computes the part of its experts, or its columns of every expert. vLLM adds the ranks'
    outputs, and runs the router and a shared expert.
    """

    def __init__(self, moe: FusedMoEConfig, format: Format, group: Group, max_tokens: int) -> None:
        """Make the method for one layer.

        `group` says what its activations are, and whether the checkpoint has their scales.
        `max_tokens` is the most tokens of a step.
        """
        super().__init__(moe)
        self.format = format
        self.group = group
        self.max_tokens = max_tokens
        self.first = GATE_UP if moe.is_act_and_mul else UP

    @property
    def activation(self) -> str:
        """What stands between the GEMMs, as nvfp4.moe calls it."""
        return ACTIVATIONS[self.moe.activation.value]

    def create_weights(
        self,
        layer: RoutedExperts,
        num_experts: int,
        hidden_size: int,
        intermediate_size_per_partition: int,
        params_dtype: torch.dtype,
        **extra_weight_attrs,
    ) -> None:
        _refuse_unsupported(layer, self.moe)
        hidden, intermediate = hidden_size, intermediate_size_per_partition
        for what, size in (("a hidden", hidden), ("an intermediate", intermediate)):
            if size % BLOCK:
                need = f"{what} size that is a multiple of {BLOCK} on each rank"
                raise refused(layer.layer_name, need, f"{size} on each of {self.moe.tp_size}")
        self.dtype = params_dtype
        self._create(layer, num_experts, self.first, intermediate, hidden)
        self._create(layer, num_experts, DOWN, hidden, intermediate)
        plan(self, layer)

    def workloads(self, layer: RoutedExperts) -> tuple[Workload, ...]:
        """The two grouped GEMMs of a loaded layer, before its weights are processed.

        W4A16 has other kernels, which the layer's own warm-up compiles.
        """
        if self.group.activation == W4A16:
            return ()
        data = getattr(layer, _parameter(DOWN, self.format.data))
        experts, _, hidden, half = data.shape
        static = self._input_global_scales(layer, DOWN) is not None
        return moe_workloads(
            *(experts, hidden, 2 * half, self.max_tokens, self.moe.experts_per_token),
            dtypes=(self.dtype,),
            glu=static,
            activation=self.activation,
        )

    def _create(
        self, layer: RoutedExperts, experts: int, shards: Sequence[str], n: int, k: int
    ) -> None:
        """Make the parameters of weights [N, K], with a place for each shard of each expert."""
        f = self.format
        here = range(first := _first_expert(layer), first + experts)
        everyone = range(layer.global_num_experts)  # each rank reads all input scales
        for name, of, shape, dtype in (
            (f.data, here, (n, k // 2), DATA_DTYPE),
            (f.scales, here, (n, k // BLOCK), SCALE_DTYPE),
            (f.global_scale, here, (), torch.float32),
            (f.input_global_scale, everyone, (), torch.float32),
        ):
            data = torch.empty((len(of), len(shards), *shape), dtype=dtype)
            param = Parameter(data, requires_grad=False)
            set_weight_attrs(param, {"weight_loader": ExpertLoader(layer, name, of, shards)})
            layer.register_parameter(_parameter(shards, name), param)

    def process_weights_after_loading(self, layer: RoutedExperts) -> None:
        """Check what was loaded, swizzle the scales, and make the layer that runs."""
        device = getattr(layer, _parameter(DOWN, self.format.data)).device
        compile_planned(device)
        layer.nvfp4 = MoE(
            self._weights(layer, self.first),
            self._weights(layer, DOWN),
            self._x_global_scale(layer),
            self._h_global_scale(layer),
            expert_offset=_first_expert(layer),
            global_num_experts=layer.global_num_experts,
            swiglu_limit=self.moe.swiglu_limit,
            activation=self.activation,
            activation_format=self.group.activation,
        )
        f = self.format
        for shards in (self.first, DOWN):
            for name in (f.data, f.scales, f.global_scale, f.input_global_scale):
                delattr(layer, _parameter(shards, name))
        made = layer.nvfp4
        form = repr(made), made.w13_global_scale.shape, self.dtype
        per_token = self.moe.experts_per_token
        run_first(device, form, lambda: made.warmup(self.max_tokens, per_token, (self.dtype,)))

    def apply(
        self,
        layer: RoutedExperts,
        x: Tensor,
        topk_weights: Tensor,
        topk_ids: Tensor,
        shared_experts: object,
        shared_experts_input: Tensor | None,
    ) -> Tensor:
        return layer.nvfp4(x, topk_weights, topk_ids)

    def get_fused_moe_quant_config(self, layer: RoutedExperts) -> None:
        """Return no configuration for vLLM's own kernels, because none of them runs."""

    def _weights(self, layer: RoutedExperts, shards: Sequence[str]) -> ExpertWeights:
        """Check the loaded tensors and swizzle the scales; the data is not moved."""
        f = self.format
        params = [
            getattr(layer, _parameter(shards, name)) for name in (f.data, f.scales, f.global_scale)
        ]
        for param in params:
            param.weight_loader.needs_all()
        data, scales, stored = (param.data for param in params)
        p = f.from_stored(stored)
        for place in product(*map(range, p.shape)):
            part = QuantizedTensor(data[place], scales[place], p[place], LINEAR)
            validated(params[0].weight_loader.module(*place), part)
        swizzled = [swizzle_scales(expert.flatten(0, 1)) for expert in scales.view(DATA_DTYPE)]
        return ExpertWeights(data.flatten(1, 2), torch.stack(swizzled).view(SCALE_DTYPE), p)

    def _x_global_scale(self, layer: RoutedExperts) -> Tensor | None:
        p = self._input_global_scales(layer, self.first)
        return None if p is None else p.amax()

    def _h_global_scale(self, layer: RoutedExperts) -> Tensor | None:
        p, first = self._input_global_scales(layer, DOWN), _first_expert(layer)
        return None if p is None else p[first : first + layer.local_num_experts, 0].clone()

    def _input_global_scales(self, layer: RoutedExperts, shards: Sequence[str]) -> Tensor | None:
        param = getattr(layer, _parameter(shards, self.format.input_global_scale))
        if not self.group.calibrated or not param.weight_loader.complete():
            return None
        p = self.format.from_stored(param.data)
        return multipliers(p, param.weight_loader.tensor)


class ExpertLoader:
    """The weight_loader of a parameter [experts, shards, …].

    It copies this rank's part of a tensor to its place, and records which tensors came.
    """

    supports_moe_loading = True
    """Some models of vLLM check for this attribute before they pass the expert to a loader."""

    def __init__(
        self, layer: RoutedExperts, name: str, experts: range, shards: Sequence[str]
    ) -> None:
        """Make the loader of the tensors `name`; only `experts` have a place in the parameter."""
        leaves = layer.ckpt_gate_proj_name, layer.ckpt_up_proj_name, layer.ckpt_down_proj_name
        self.leaves = dict(zip((*GATE_UP, *DOWN), leaves, strict=True))
        self.layer_name, self.name, self.experts, self.shards = (
            layer.layer_name, name, experts, shards,
        )  # fmt: skip
        self.rank, self.ranks = layer.moe_config.tp_rank, layer.moe_config.tp_size
        self.came: set[tuple[int, int]] = set()

    def __call__(
        self,
        param: Tensor,
        loaded_weight: Tensor,
        weight_name: str,
        shard_id: str,
        expert_id: int,
        return_success: bool = False,
    ) -> bool | None:
        """Load a tensor as RoutedExperts.weight_loader does.

        If the caller asks for a result, it is False for another rank's expert.
        """
        if expert_id not in self.experts:
            return False if return_success else None
        place = self.experts.index(expert_id), self.shards.index(shard_id)
        tensor = self.tensor(*place)
        out = param.data[place]
        needs_dtype(tensor, loaded_weight, out.dtype)
        if out.dim():
            loaded_weight = self._part(tensor, loaded_weight, out.shape, int(shard_id in DOWN))
        elif loaded_weight.numel() != 1:
            raise refused(tensor, "one value", f"shape {list(loaded_weight.shape)}")
        out.copy_(loaded_weight.reshape(out.shape))
        self.came.add(place)
        return True if return_success else None

    def _part(self, tensor: str, whole: Tensor, shape: torch.Size, axis: int) -> Tensor:
        """Cut a rank's part [N, C] from an expert's tensor, along the intermediate size."""
        need = list(shape)
        need[axis] *= self.ranks
        if list(whole.shape) != need:
            raise refused(tensor, f"shape {need}", f"shape {list(whole.shape)}")
        return whole.chunk(self.ranks, axis)[self.rank]

    def module(self, expert: int, shard: int) -> str:
        """The checkpoint's name of the layer that has this place."""
        return f"{self.layer_name}.{self.experts[expert]}.{self.leaves[self.shards[shard]]}"

    def tensor(self, expert: int, shard: int) -> str:
        return f"{self.module(expert, shard)}.{self.name}"

    def complete(self) -> bool:
        return len(self.came) == len(self.experts) * len(self.shards)

    def needs_all(self) -> None:
        """Raise ValueError unless the tensors of all places came."""
        for expert in range(len(self.experts)):
            for shard in range(len(self.shards)):
                if (expert, shard) not in self.came:
                    need = "to be in the checkpoint"
                    raise refused(self.tensor(expert, shard), need, "no such tensor")


def _parameter(shards: Sequence[str], name: str) -> str:
    """The name of a parameter in vLLM."""
    return f"{'w2' if shards == DOWN else 'w13'}_{name}"


def _first_expert(layer: RoutedExperts) -> int:
    """The first of this rank's experts, which are consecutive."""
    if layer.expert_map is None:
        return 0
    here = torch.nonzero(layer.expert_map >= 0).flatten().tolist()
    if here != list(range(here[0], here[0] + len(here))):
        need = "each rank's experts to follow each other (--expert-placement-strategy linear)"
        raise refused(layer.layer_name, need, here)
    return here[0]


def _constant(name: str, value: float | None) -> str:
    return f"SwiGLU without {name}" if value is None else f"SwiGLU with {name} {value}"


def _refuse_unsupported(layer: RoutedExperts, moe: FusedMoEConfig) -> None:
    activation = moe.activation.value
    oai = ACTIVATIONS.get(activation) == SWIGLU_OAI
    alpha, beta = (ALPHA, BETA) if oai else (None, None)
    for refuse, need, got in (
        (moe.has_bias, "experts without biases", "biases"),
        (activation not in ACTIVATIONS, f"one of {', '.join(ACTIVATIONS)}", activation),
        (moe.swiglu_alpha not in (None, alpha), _constant("alpha", alpha), moe.swiglu_alpha),
        (moe.swiglu_beta not in (None, beta), _constant("beta", beta), moe.swiglu_beta),
        (
            layer.apply_router_weight_on_input,
            "routing weights that multiply the experts' outputs",
            "such that multiply their inputs",
        ),
    ):
        if refuse:
            raise refused(layer.layer_name, need, got)
