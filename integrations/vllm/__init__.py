"""NVFP4 checkpoints in vLLM on these operators, wherever vLLM runs; a plugin of vLLM's own kind.

vLLM calls `register` in each of its processes (entry point "vllm.general_plugins"). It adds the
quantization method "nvfp4", which takes over the checkpoints that nvfp4.checkpoints can parse:
`vllm serve DIR` needs no option. `--quantization modelopt_fp4` or `compressed-tensors` keeps
vLLM's own way.

What is used of vLLM is what it offers to plugins: register_quantization_config with its
QuantizationConfig, LinearMethodBase and FusedMoEMethodBase (create_weights,
process_weights_after_loading, apply), the parameter classes that say how a tensor is sharded, and
register_linear_kernel. No class of vLLM's is changed, and no model after it was loaded.
"""

import logging
from functools import cache

from nvfp4.backends.environment import prefer_batch_invariance

logger = logging.getLogger("vllm.nvfp4")  # a child of vLLM's, so that its handlers print it

QUANTIZATION = "nvfp4"
"""The method's name: what --quantization would say."""

SUPPORTED_VERSIONS = ("0.32",)
"""The vLLM releases that this was run with. Its plugin classes change between releases."""


@cache
def register() -> None:
    """Add the quantization method, and on a CPU a kernel for vLLM's own ones, to this process's
    vLLM; called again, it changes nothing.

    In a release that is not supported it says so and adds nothing: vLLM goes on without.
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
    """What is asked of vLLM is asked of the ops: with VLLM_BATCH_INVARIANT no sum is split."""
    from vllm import envs

    if envs.VLLM_BATCH_INVARIANT:
        prefer_batch_invariance()


def unsupported(version: str) -> str:
    """Why this release of vLLM is refused; empty for a supported one."""
    if ".".join(version.split(".")[:2]) in SUPPORTED_VERSIONS:
        return ""
    need = " or ".join(f"{release}.x" for release in SUPPORTED_VERSIONS)
    return f"nvfp4: the vLLM plugin needs vLLM {need}, got {version}; it stays out of the way"
