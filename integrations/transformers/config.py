"""The configuration that transformers keeps with a model in NVFP4."""

from collections.abc import Sequence
from typing import Any

from transformers.utils.quantization_config import QuantizationConfigMixin

from nvfp4.checkpoints.schemes import MODELOPT
from nvfp4.spec.format import W4A4
from nvfp4.spec.scale_rules import AMAX_OVER_SIX

METHOD = MODELOPT.name
"""The quant_method of ModelOpt's checkpoints."""


class NvFp4Config(QuantizationConfigMixin):
    """Quantize a model in floats to NVFP4 while it is loaded.

    Pass it to from_pretrained as quantization_config. A checkpoint that is in NVFP4 already needs
    none: transformers makes one of the checkpoint's own configuration.

    Args:
        exclude: layers to leave in floats, as nvfp4.quantize_model takes them.
        scale_rule: of the activations' block scales, as nvfp4.quantize takes it.
        activation: "nvfp4" (W4A4) or "bf16" (W4A16).
        backend: a backend's name, or "" to choose at each call.
        stored: the quantization_config of a checkpoint.
    """

    def __init__(
        self,
        exclude: Sequence[str] = (),
        scale_rule: str = AMAX_OVER_SIX,
        activation: str = W4A4,
        backend: str = "",
        **stored: Any,
    ) -> None:
        self.quant_method = METHOD
        self.exclude = tuple(exclude)
        self.scale_rule = scale_rule
        self.activation = activation
        self.backend = backend
        self.stored = stored

    def to_dict(self) -> dict[str, Any]:
        """The quantization_config of config.json."""
        if self.stored:
            return {"quant_method": METHOD} | self.stored
        own = {name: getattr(self, name) for name in ("scale_rule", "activation", "backend")}
        return {"quant_method": METHOD, "exclude": list(self.exclude)} | own
