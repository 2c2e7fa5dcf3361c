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

from nvfp4.backends.environment import VLLM_PLUGIN, prefer_batch_invariance, vllm_plugin

logger = logging.getLogger("vllm.nvfp4")  # a child of vLLM's logger, so that its handlers print it

QUANTIZATION = "nvfp4"
"""The method's name, for --quantization."""

TESTED_VERSIONS = ("0.28", "0.32")
"""The vLLM releases that the plugin was run with. Plugin classes change in releases."""


@cache
def register() -> None:
    """Add the quantization method to this process's vLLM, and on a CPU also a linear kernel.

    A second call changes nothing. An untested release is tried with a warning. Where the plugin
    cannot be loaded into it, that is logged and vLLM starts without the plugin.
    """
    if not vllm_plugin():
        return
    from vllm import __version__

    if warning := untested(__version__):
        logger.warning(warning)
    try:
        _add()
    except (ImportError, AttributeError, TypeError) as error:  # what another release lacks
        message = (
            "nvfp4: the vLLM plugin cannot be loaded into vLLM %s and stays out of the way: %s"
        )
        logger.error(message, __version__, error)


def _add() -> None:
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


def untested(version: str) -> str:
    """A warning about a release of vLLM that the plugin was not run with; empty for the others."""
    if ".".join(version.split(".")[:2]) in TESTED_VERSIONS:
        return ""
    tested = " and ".join(f"{release}.x" for release in TESTED_VERSIONS)
    return (
        f"nvfp4: the vLLM plugin was tested with vLLM {tested}, not with {version}. "
        f"If it fails, {VLLM_PLUGIN}=0 turns it off"
    )
