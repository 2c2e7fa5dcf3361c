"""The quantization method "nvfp4" of vLLM: which layers are quantized, and what runs them."""

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import torch
from vllm.config import get_current_vllm_config
from vllm.model_executor.layers.attention import Attention, MLAAttention
from vllm.model_executor.layers.fused_moe import RoutedExperts
from vllm.model_executor.layers.linear import LinearBase, UnquantizedLinearMethod
from vllm.model_executor.layers.quantization import get_quantization_config
from vllm.model_executor.layers.quantization.base_config import (
    QuantizationConfig,
    QuantizeMethodBase,
)
from vllm.model_executor.layers.quantization.kv_cache import BaseKVCacheMethod
from vllm.model_executor.models.utils import WeightsMapper

from nvfp4.checkpoints import COMPRESSED_TENSORS, MODELOPT, Group, Scheme, is_nvfp4, parse
from nvfp4.checkpoints.names import GATE, UP
from nvfp4.integrations.vllm import QUANTIZATION
from nvfp4.integrations.vllm.experts import NvFp4ExpertsMethod
from nvfp4.integrations.vllm.linear import NvFp4LinearMethod
from nvfp4.integrations.vllm.loading import refused
from nvfp4.spec.format import FLOAT_DTYPES

VLLM_MIXED = "modelopt_mixed"
"""The name of vLLM's method for ModelOpt's MIXED_PRECISION."""

FUSED = {"qkv_proj": ["q_proj", "k_proj", "v_proj"], "gate_up_proj": [GATE, UP]}
"""The usual names of fused layers; some models state their own too late to be used."""


class NvFp4Config(QuantizationConfig):
    """A checkpoint's scheme in the form that vLLM asks for.

    vLLM itself runs embeddings, the head and layers that the scheme leaves in floats. Where a mixed
    checkpoint has layers in other formats, `rest` is vLLM's own configuration, which runs them.
    """

    def __init__(self, scheme: Scheme, rest: QuantizationConfig | None = None) -> None:
        super().__init__()
        self.scheme = scheme
        self.rest = rest

    @classmethod
    def from_config(cls, config: dict[str, Any]) -> "NvFp4Config":
        """Make it from a quantization_config or an hf_quant_config.json.

        Raises:
            ValueError: an entry is not supported; the message names it.
        """
        scheme = parse(config)
        if not scheme.others:
            return cls(scheme)
        name = VLLM_MIXED if scheme.format == MODELOPT else COMPRESSED_TENSORS.name
        return cls(scheme, get_quantization_config(name).from_config(config))

    @classmethod
    def override_quantization_method(
        cls, hf_quant_cfg: Mapping[str, Any], user_quant: str | None, hf_config: Any = None
    ) -> str | None:
        """Take NVFP4 checkpoints unless the user named another method for them."""
        ours = user_quant in (None, QUANTIZATION) and is_nvfp4(hf_quant_cfg)
        return QUANTIZATION if ours else None

    def get_name(self) -> str:
        return QUANTIZATION

    def get_supported_act_dtypes(self) -> list[torch.dtype]:
        return list(FLOAT_DTYPES)

    @classmethod
    def get_min_capability(cls) -> int:
        return 80

    @staticmethod
    def get_config_filenames() -> list[str]:
        return []  # vLLM itself puts hf_quant_config.json where there is no quantization_config

    def apply_vllm_mapper(self, hf_to_vllm_mapper: WeightsMapper) -> None:
        """Map the scheme's module names from the checkpoint's to the model's."""
        rename = hf_to_vllm_mapper.apply_list
        groups = tuple(
            replace(group, targets=tuple(rename(list(group.targets))))
            for group in self.scheme.groups
        )
        ignore, others = (
            tuple(rename(list(names))) for names in (self.scheme.ignore, self.scheme.others)
        )
        self.scheme = replace(self.scheme, groups=groups, ignore=ignore, others=others)
        if self.rest is not None:
            self.rest.apply_vllm_mapper(hf_to_vllm_mapper)

    def get_quant_method(self, layer: torch.nn.Module, prefix: str) -> QuantizeMethodBase | None:
        if isinstance(layer, (Attention, MLAAttention)):
            return BaseKVCacheMethod(self)  # loads the scales of a quantized KV cache, if any
        if isinstance(layer, LinearBase):
            modules = self._parts(prefix)
            group = self._group(modules)
            if group is None:
                return self._rest(modules, layer, prefix) or UnquantizedLinearMethod()
            return NvFp4LinearMethod(self.scheme.format, modules, group, _max_tokens())
        if isinstance(layer, RoutedExperts):
            names = layer.ckpt_gate_proj_name, layer.ckpt_up_proj_name, layer.ckpt_down_proj_name
            modules = [f"{prefix}.0.{name}" for name in names if name]  # some have no gate
            group = self._group(modules)
            if group is None:
                return self._rest(modules, layer, prefix)
            return NvFp4ExpertsMethod(layer.moe_config, self.scheme.format, group, _max_tokens())
        return None

    def _rest(
        self, modules: list[str], layer: torch.nn.Module, prefix: str
    ) -> QuantizeMethodBase | None:
        """Ask vLLM for its method of a layer in another format; None for a layer in floats."""
        if self.rest is None or not any(map(self.scheme.is_other, modules)):
            return None
        self.rest.packed_modules_mapping = self.packed_modules_mapping
        return self.rest.get_quant_method(layer, prefix)

    def _parts(self, prefix: str) -> list[str]:
        """The modules in the checkpoint of a layer of the model: several for a fused one."""
        parent, _, name = prefix.rpartition(".")
        parts = (FUSED | self.packed_modules_mapping).get(name, [name])
        return [f"{parent}.{part}".removeprefix(".") for part in parts]

    def _group(self, modules: list[str]) -> Group | None:
        groups = [self.scheme.group_of(module) for module in modules]
        if len(set(groups)) != 1:
            got = [module for module, group in zip(modules, groups, strict=True) if group]
            raise refused(", ".join(modules), "to be quantized alike (one layer runs them)", got)
        return groups[0]


def _max_tokens() -> int:
    """The most tokens that vLLM puts into one step."""
    config = get_current_vllm_config()
    return (
        config.scheduler_config.max_num_batched_tokens * config.parallel_config.data_parallel_size
    )
