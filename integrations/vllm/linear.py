"""Linear layers in vLLM: fused or not, whole or one rank's part."""

from collections.abc import Sequence
from math import gcd

import torch
from torch import Tensor
from torch.nn import Parameter
from vllm.model_executor.layers.linear import (
    LinearBase,
    LinearMethodBase,
    register_weight_loader_v2_supported_method,
)
from vllm.model_executor.parameter import (
    BasevLLMParameter,
    ModelWeightParameter,
    PerTensorScaleParameter,
)

from nvfp4.ahead.warmup import run_once, workload_of
from nvfp4.backends.workload import Workload
from nvfp4.checkpoints import Format, Group
from nvfp4.checkpoints.schemes import PRE_QUANT_SCALE
from nvfp4.integrations.vllm.loading import PartLoader, multipliers, refused, validated
from nvfp4.integrations.vllm.warmup import compile_planned, plan, run_first
from nvfp4.ops.linear import linear
from nvfp4.spec.format import BLOCK, DATA_DTYPE, FLOAT_DTYPES, LINEAR, SCALE_DTYPE
from nvfp4.tensors import QuantizedTensor, concatenate


@register_weight_loader_v2_supported_method
class NvFp4LinearMethod(LinearMethodBase):
    """A linear layer of vLLM on torch.ops.nvfp4.linear, in W4A4 or W4A16 as its group says.

    Its parameters first have the checkpoint's names. After loading they become what the op takes.
    Each part of a fused layer (q, k, v; gate, up) keeps its global scale. The parts have the same
    input, so its scale is the largest of their calibrated ones.
    """

    def __init__(
        self, format: Format, modules: Sequence[str], group: Group, max_tokens: int
    ) -> None:
        """Make the method for one layer.

        `modules` are its names in the checkpoint, several for a fused layer. `group` says what its
        activations are, and whether the checkpoint has their scale. `max_tokens` is the most
        tokens of a step.
        """
        self.format = format
        self.modules = modules
        self.group = group
        self.max_tokens = max_tokens

    def create_weights(
        self,
        layer: LinearBase,
        input_size_per_partition: int,
        output_partition_sizes: list[int],
        input_size: int,
        output_size: int,
        params_dtype: torch.dtype,
        **extra_weight_attrs,
    ) -> None:
        n, k = sum(output_partition_sizes), input_size_per_partition
        if k % BLOCK:
            ranks = input_size // k
            need = f"K to be a multiple of {BLOCK} on each rank"
            got = f"K = {input_size} on {ranks} of them" if ranks > 1 else f"K = {k}"
            raise refused(self.modules[0], need, got)
        self.sizes, self.k, self.dtype = output_partition_sizes, input_size, params_dtype
        if len(self.modules) != len(self.sizes):  # one name, whose tensors vLLM cuts into several
            self.modules = [self.modules[0]] * len(self.sizes)
        load, parts = extra_weight_attrs["weight_loader"], len(self.sizes)

        def loader(name: str, *dtypes: torch.dtype) -> PartLoader:
            return PartLoader(load, self.modules, name, *dtypes)

        for name, columns, dtype in (
            (self.format.data, k // 2, DATA_DTYPE),
            (self.format.scales, k // BLOCK, SCALE_DTYPE),
        ):
            data = torch.empty(n, columns, dtype=dtype)
            weight = ModelWeightParameter(
                data=data, input_dim=1, output_dim=0, weight_loader=loader(name, dtype)
            )
            layer.register_parameter(name, weight)
        for name in (self.format.global_scale, self.format.input_global_scale):
            scale = PerTensorScaleParameter(
                data=torch.empty(parts, dtype=torch.float32),
                weight_loader=loader(name, torch.float32),
            )
            layer.register_parameter(name, scale)
        layer.register_parameter(
            PRE_QUANT_SCALE,
            InputFactor(
                data=torch.empty((parts, k) if parts > 1 else k, dtype=params_dtype),
                weight_loader=loader(PRE_QUANT_SCALE, *FLOAT_DTYPES),
            ),
        )
        plan(self, layer)

    def workloads(self, layer: LinearBase) -> tuple[Workload]:
        """The GEMM of a loaded layer, before its weights are processed."""
        n, half_k = getattr(layer, self.format.data).shape
        scales = getattr(layer, self.format.input_global_scale).weight_loader
        return (
            workload_of(
                *(n, 2 * half_k, self.max_tokens, (self.dtype,)),
                bias=self.dtype if getattr(layer, "has_bias", False) else None,
                activation_format=self.group.activation,
                segments=n // gcd(*self.sizes),  # as concatenate makes them
                calibrated=self.group.calibrated and scales.complete(),
            ),
        )

    def process_weights_after_loading(self, layer: LinearBase) -> None:
        """Check what was loaded, swizzle the scales, and keep what the op reads."""
        device = getattr(layer, self.format.data).device
        compile_planned(device)
        form = *self.workloads(layer), self._input_factor(layer) is None
        input_global_scale = self._input_global_scale(layer)
        factor = self._input_factor(layer)
        weight = concatenate(self._weights(layer))
        for name in self._stored():
            delattr(layer, name)
        _set(layer, "weight", weight.data)
        _set(layer, "weight_scales", weight.scales)
        _set(layer, "weight_global_scale", weight.global_scale)
        _set(layer, "input_global_scale", input_global_scale)
        _set(layer, "input_factor", factor)
        run_first(device, form, lambda: self._run(layer))

    def _run(self, layer: LinearBase) -> None:
        """Run each number of tokens once: an input factor makes x, a layer without one takes it."""
        n, k = layer.weight.shape[0], 2 * layer.weight.shape[1]
        biased = getattr(layer, "has_bias", False)
        bias = layer.weight.new_zeros(n, dtype=self.dtype) if biased else None
        run_once(
            lambda x: self.apply(layer, x, bias),
            *(k, self.max_tokens, (self.dtype,), layer.weight.device),
        )

    def apply(self, layer: LinearBase, x: Tensor, bias: Tensor | None = None) -> Tensor:
        if layer.input_factor is not None:
            x = x * layer.input_factor
        return linear(
            x,
            layer.weight,
            layer.weight_scales,
            layer.weight_global_scale,
            layer.input_global_scale,
            bias,
            activation=self.group.activation,
        )

    def _stored(self) -> tuple[str, ...]:
        f = self.format
        return f.data, f.scales, f.global_scale, f.input_global_scale, PRE_QUANT_SCALE

    def _weights(self, layer: LinearBase) -> list[QuantizedTensor]:
        """This rank's rows and columns of the weight of each part."""
        f = self.format
        for name in (f.data, f.scales, f.global_scale):
            getattr(layer, name).weight_loader.needs_all()
        self._check_shapes(layer)
        p = f.from_stored(getattr(layer, f.global_scale).data)
        data, scales = (getattr(layer, name).data.split(self.sizes) for name in (f.data, f.scales))
        return [
            validated(
                self.modules[part], QuantizedTensor(data[part], scales[part], p[part], LINEAR)
            )
            for part in range(len(self.modules))
        ]

    def _check_shapes(self, layer: LinearBase) -> None:
        """Check before vLLM cuts them that data and scales have the same N and the layer's K."""
        f = self.format
        data, scales = (getattr(layer, name).weight_loader.shapes for name in (f.data, f.scales))
        for part, module in enumerate(self.modules):
            rows = data[part][0]
            for name, shape, k in (
                (f.data, data[part], self.k // 2),
                (f.scales, scales[part], self.k // BLOCK),
            ):
                if shape != (rows, k):
                    raise refused(f"{module}.{name}", f"shape {[rows, k]}", list(shape))

    def _input_global_scale(self, layer: LinearBase) -> Tensor | None:
        name = self.format.input_global_scale
        scale = getattr(layer, name)
        if not self.group.calibrated or not scale.weight_loader.complete():
            return None
        p = self.format.from_stored(scale.data)
        return multipliers(p, lambda part: f"{self.modules[part]}.{name}").amax()

    def _input_factor(self, layer: LinearBase) -> Tensor | None:
        """The factors [K] by which AWQ multiplies the input; fused parts have the same ones."""
        factors = layer.pre_quant_scale
        if not factors.weight_loader.shapes:
            return None
        factors.weight_loader.needs_all()
        each = factors.data.view(len(self.modules), -1)
        if not bool((each == each[0]).all()):
            tensors = ", ".join(f"{module}.{PRE_QUANT_SCALE}" for module in self.modules)
            raise refused(tensors, "to be equal (one layer runs them)", "others")
        return each[0].clone()


class InputFactor(BasevLLMParameter):
    """Factors [K] of a layer's input, [parts, K] if fused; sharded where the layer's K is."""

    def load_row_parallel_weight(self, loaded_weight: Tensor) -> None:
        size = self.data.shape[0]
        self.data.copy_(loaded_weight.narrow(0, self.tp_rank * size, size))

    def load_merged_column_weight(self, loaded_weight: Tensor, shard_id: int, **_) -> None:
        self.data[shard_id].copy_(loaded_weight)

    def load_qkv_weight(self, loaded_weight: Tensor, shard_id: str, **_) -> None:
        self.data[self._shard_id_as_int(shard_id)].copy_(loaded_weight)


def _set(layer: LinearBase, name: str, value: Tensor | None) -> None:
    layer.register_parameter(name, None if value is None else Parameter(value, requires_grad=False))
