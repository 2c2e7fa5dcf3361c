"""How transformers loads and saves a model in NVFP4.

The NVFP4 layers are loaded by nvfp4.checkpoints, as load_model does it, so the logits are the same.
transformers makes the model, reads the configuration, and loads what is in floats.
"""

from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from transformers.quantizers import HfQuantizer

from nvfp4.checkpoints.checkpoint import Checkpoint
from nvfp4.checkpoints.load import Loader
from nvfp4.checkpoints.parsing import read_scheme
from nvfp4.checkpoints.quantize_model import quantize_model
from nvfp4.checkpoints.save import contents
from nvfp4.checkpoints.schemes import MODELOPT
from nvfp4.checkpoints.skeleton import Skeleton
from nvfp4.integrations.transformers.config import NvFp4Config

EVERYTHING = {".*"}
"""The pattern of all names."""


class NvFp4Quantizer(HfQuantizer):
    """Loads a ModelOpt checkpoint's NVFP4 layers, or quantizes a model that was loaded in floats.

    All of the model is on one device.
    """

    requires_calibration = False
    quantization_config: NvFp4Config

    def __init__(self, quantization_config: NvFp4Config, **options: Any) -> None:
        super().__init__(quantization_config, **options)
        self._loader: Loader | None = None

    def validate_environment(self, device_map: Any = None, **options: Any) -> None:
        """Refuse a map of several devices: the layers come after transformers has split a model."""
        self._device = _one_device(device_map)

    def _process_model_before_weight_loading(
        self,
        model: Any,
        dtype: torch.dtype = torch.bfloat16,
        checkpoint_files: list[str] | None = None,
        **options: Any,
    ) -> None:
        """Take the layers out of the model that transformers does not load."""
        folder = Path(checkpoint_files[0]).parent if checkpoint_files else None
        if folder is None or read_scheme(folder) is None:
            if self.pre_quantized:
                raise ValueError(f"from_pretrained needs the checkpoint's files, got {folder}")
            return
        with torch.device("cpu"):  # around it is the meta device
            backend = self.quantization_config.backend
            skeleton = Skeleton(model.config, dtype, model)
            self._loader = Loader(Checkpoint(folder), skeleton, self._device, backend)
            replaced = self._loader.not_in_floats
        self._aside = {path: skeleton.modules[path] for path in replaced}
        for path in replaced:
            model.set_submodule(path, nn.Identity())
        for name, kept in list(model.all_tied_weights_keys.items()):
            if any(each.rpartition(".")[0] in replaced for each in (name, kept)):
                del model.all_tied_weights_keys[name]
        # transformers would report the layers' tensors as unexpected; the loader checks them all.
        self._patterns = (
            model._keys_to_ignore_on_load_unexpected,
            model._keys_to_ignore_on_load_missing,
        )
        model._keys_to_ignore_on_load_unexpected = EVERYTHING
        model._keys_to_ignore_on_load_missing = EVERYTHING

    def _process_model_after_weight_loading(self, model: Any, **options: Any) -> Any:
        """Put the NVFP4 layers in, or make them of the layers in floats."""
        config = self.quantization_config
        if self._loader is None:
            how = config.scale_rule, config.activation, config.backend
            return quantize_model(model, config.exclude, *how)
        unexpected, missing = self._patterns
        model._keys_to_ignore_on_load_unexpected = unexpected
        model._keys_to_ignore_on_load_missing = missing
        for path, module in self._aside.items():
            model.set_submodule(path, module)
        loader, self._loader = self._loader, None
        loader.loaded(lambda title, total: lambda: None)
        return model

    def get_state_dict_and_metadata(self, model: Any) -> tuple[dict[str, Tensor], dict[str, str]]:
        """The tensors of a ModelOpt checkpoint, whose configuration is written beside them."""
        found = contents(model, MODELOPT, own_names=True)
        self.quantization_config.stored = found.scheme.config()
        model.config.quantization_config = self.quantization_config
        return found.tensors, {}

    def is_serializable(self) -> bool:
        return True

    @property
    def is_trainable(self) -> bool:
        return False

    @property
    def is_compileable(self) -> bool:
        return True


def _one_device(device_map: Any) -> str:
    """The device that a device_map is about; a GPU, if there is one, where it is to be chosen."""
    devices = set(device_map.values()) if isinstance(device_map, dict) else {device_map}
    if len(devices) != 1:
        raise ValueError(f"from_pretrained in NVFP4 needs one device in device_map, got {devices}")
    (device,) = devices
    if device is None:
        return "cpu"
    if device in ("auto", "balanced", "balanced_low_0", "sequential"):
        return "cuda" if torch.cuda.is_available() else "cpu"
    if device == "disk":
        raise ValueError("from_pretrained in NVFP4 needs a device in device_map, got 'disk'")
    return str(torch.device(device))
