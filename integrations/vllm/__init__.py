"""A vLLM plugin that runs NVFP4 checkpoints on these operators, wherever vLLM runs.

vLLM calls `register` in each of its processes (entry point "vllm.general_plugins"). It adds the
quantization method "nvfp4", which takes the checkpoints that nvfp4.checkpoints can parse. So
`vllm serve DIR` needs no option. With `--quantization modelopt_fp4` or `compressed-tensors`, vLLM
runs its own kernels.

The plugin uses what vLLM offers to plugins: register_quantization_config with QuantizationConfig,
LinearMethodBase and FusedMoEMethodBase, the parameter classes that shard tensors, and
register_linear_kernel. It changes no class of vLLM and no loaded model.
"""

import logging
from functools import cache

from nvfp4.backends.environment import prefer_batch_invariance

logger = logging.getLogger("vllm.nvfp4")  # a child of vLLM's logger, so that its handlers print it

QUANTIZATION = "nvfp4"
"""The method's name, for --quantization."""

SUPPORTED_VERSIONS = ("0.32",)
"""The vLLM releases that the plugin was run with, because plugin classes change in releases."""


@cache
def register() -> None:
    """Add the quantization method to this process's vLLM, and on a CPU also a linear kernel.

    A second call changes nothing. In an unsupported release it logs that and adds nothing.
    """
    from vllm import __version__

    if refusal := unsupported(__version__):
        logger.error(refusal)
        return
    from vllm.model_executor.kernels.linear import register_linear_kernel
    from vllm.model_executor.layers.quantization import register_quantization_config
    from vllm.platforms import PlatformEnum

    from nvfp4.integrations.vllm.config import NvFp4Config
    from nvfp4.integrations.vllm.kernel import OpsNvFp4LinearKernel

    adopt_settings()
    register_quantization_config(QUANTIZATION)(NvFp4Config)
    register_linear_kernel(OpsNvFp4LinearKernel, PlatformEnum.CPU, "nvfp4")


def adopt_settings() -> None:
    """Pass vLLM's settings on to the ops: with VLLM_BATCH_INVARIANT no sum over K is split."""
    from vllm import envs

    if envs.VLLM_BATCH_INVARIANT:
        prefer_batch_invariance()


def unsupported(version: str) -> str:
    """The reason to refuse this release of vLLM; empty for a supported one."""
    if ".".join(version.split(".")[:2]) in SUPPORTED_VERSIONS:
        return ""
    need = " or ".join(f"{release}.x" for release in SUPPORTED_VERSIONS)
    return f"nvfp4: the vLLM plugin needs vLLM {need}, got {version}; it stays out of the way"
