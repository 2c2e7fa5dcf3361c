"""What is converted: a language model in floats, in a Hugging Face folder or a GGUF file, its
tensors read one at a time.
"""

import shutil
from functools import cached_property
from pathlib import Path
from typing import Any, Protocol

import torch
from torch import Tensor

from nvfp4.checkpoints.files import INDEX_FILE, TensorFiles, TensorSpec
from nvfp4.checkpoints.parsing import read_json
from nvfp4.checkpoints.schemes import CONFIG_FILE, QUANT_CONFIG_FILE
from nvfp4.checkpoints.skeleton import Skeleton

WEIGHTS = (".safetensors", ".bin", ".pt", ".pth", ".gguf", ".h5", ".msgpack", ".onnx")
"""Files of a model folder that hold weights: all others are copied."""

GGUF_DTYPE = torch.bfloat16
"""What a GGUF's tensors are dequantized to, whatever they are stored as."""


class RawTensors(Protocol):
    """A model's tensors under the names that its file has."""

    @property
    def names(self) -> tuple[str, ...]: ...
    def spec(self, name: str) -> TensorSpec: ...
    def read(self, name: str) -> Tensor: ...


class Source:
    """A model in floats. Tensors go by the names that checkpoints have them under (Skeleton), and
    are made when they are read.

    Raises:
        ValueError: it is no such model, it is quantized already, or its tensors are not in a
            safetensors or GGUF file.
    """

    def __init__(self, path: Path) -> None:
        from transformers import AutoConfig

        if not path.exists():
            raise ValueError(f"SRC needs an existing model folder or GGUF file, got {path}")
        self.path = path
        self.gguf = path.is_file()
        reader = _open_gguf(path) if self.gguf else None
        if not self.gguf and not (path / CONFIG_FILE).exists():
            raise ValueError(f"SRC needs a folder with {CONFIG_FILE}, got {path}")
        self.config = AutoConfig.from_pretrained(self.folder, **self.which)
        quantized = None if self.gguf else read_json(path / CONFIG_FILE).get("quantization_config")
        if quantized or (not self.gguf and (path / QUANT_CONFIG_FILE).exists()):
            got = (quantized or {}).get("quant_method", QUANT_CONFIG_FILE)
            raise ValueError(f"SRC needs a model in floats, got one quantized ({got}): {path}")
        self.skeleton = Skeleton(self.config)
        self._raw: RawTensors = (
            GgufTensors(reader, self.skeleton) if self.gguf else FolderTensors(path)
        )
        self._last: tuple[str, dict[str, Tensor]] = ("", {})

    @property
    def folder(self) -> Path:
        return self.path.parent if self.gguf else self.path

    @property
    def which(self) -> dict[str, str]:
        """What transformers' from_pretrained(folder, …) needs to find the model."""
        return {"gguf_file": self.path.name} if self.gguf else {}

    @cached_property
    def _found(self) -> dict[str, tuple[str, TensorSpec]]:
        """Of each tensor that which it is, or is a part of, in the file."""
        return {
            name: (raw, TensorSpec(tuple(tensor.shape), tensor.dtype))
            for raw in self._raw.names
            for name, tensor in self.skeleton.originals(raw, _on_meta(self._raw.spec(raw))).items()
        }

    @cached_property
    def tensors(self) -> dict[str, TensorSpec]:
        """Every tensor's shape and dtype; none is read."""
        return {name: spec for name, (_, spec) in self._found.items()}

    def read(self, name: str) -> Tensor:
        """A tensor, on the CPU. The one that it is a part of in the file is kept for the next."""
        raw, spec = self._found[name]
        if self._last[0] != raw:
            self._last = ("", {})  # let go of the one before first
            self._last = (raw, self.skeleton.originals(raw, self._raw.read(raw)))
        tensor = self._last[1][name]
        if tensor.shape != spec.shape:
            need, got = list(spec.shape), list(tensor.shape)
            raise ValueError(f"SRC: {name} needs shape {need}, got {got}")
        return tensor

    def copy_others(self, destination: Path) -> None:
        """Tokenizer, generation settings and whatever else there is; no weights, no config.json."""
        if self.gguf:
            self._save_others(destination)
            return
        for file in sorted(self.path.iterdir()):
            if file.name in (CONFIG_FILE, QUANT_CONFIG_FILE, INDEX_FILE) or file.name[0] == ".":
                continue
            if file.is_dir():
                shutil.copytree(file, destination / file.name, ignore=_weights)
            elif not _weights("", [file.name]):
                shutil.copyfile(file, destination / file.name)

    def _save_others(self, destination: Path) -> None:
        from transformers import AutoTokenizer, GenerationConfig

        AutoTokenizer.from_pretrained(self.folder, **self.which).save_pretrained(destination)
        GenerationConfig.from_model_config(self.config).save_pretrained(destination)

    def config_dict(self) -> dict[str, Any]:
        """config.json, without a quantization."""
        if not self.gguf:
            return read_json(self.path / CONFIG_FILE)
        config = self.config.to_diff_dict()
        config["architectures"] = [type(self.skeleton.model).__name__]
        config["dtype"] = str(GGUF_DTYPE).removeprefix("torch.")
        for key in ("quantization_config", "_name_or_path"):
            config.pop(key, None)
        return config


class FolderTensors:
    """Those of a folder of safetensors files."""

    def __init__(self, folder: Path) -> None:
        self._files = TensorFiles(folder)

    @property
    def names(self) -> tuple[str, ...]:
        return self._files.names

    def spec(self, name: str) -> TensorSpec:
        return self._files.spec(name)

    def read(self, name: str) -> Tensor:
        return self._files.read(name)


class GgufTensors:
    """Those of a GGUF file, under transformers' names of them, as transformers reorders them: each
    dequantized when it is read, to bfloat16.
    """

    def __init__(self, reader: Any, skeleton: Skeleton) -> None:
        from transformers.modeling_gguf_pytorch_utils import (
            TENSOR_PROCESSORS,
            TensorProcessor,
            get_gguf_hf_weights_map,
        )

        model = skeleton.model
        architecture = reader.fields["general.architecture"].contents()
        make = TENSOR_PROCESSORS.get(architecture, TensorProcessor)
        self._processor = make(config=model.config.to_dict())
        try:
            self._name_of = get_gguf_hf_weights_map(model, self._processor)
        except NotImplementedError as error:
            raise ValueError(f"SRC needs a GGUF of a known architecture: {error}") from error
        self._shapes = {name: tuple(t.shape) for name, t in model.state_dict().items()}
        self._stored: dict[str, list[Any]] = {}
        for tensor in reader.tensors:
            # A block's experts, [E, N, K], go without a ".weight" there.
            short = tensor.name.removesuffix(".weight")
            if name := self._name_of.get(tensor.name, self._name_of.get(short)):
                self._stored.setdefault(name, []).append(tensor)
            elif tensor.name != "rope_freqs.weight":  # which the configuration gives
                raise ValueError(f"SRC needs tensors that transformers knows, got {tensor.name}")

    @property
    def names(self) -> tuple[str, ...]:
        return tuple(self._stored)

    def spec(self, name: str) -> TensorSpec:
        return TensorSpec(self._shapes[name], GGUF_DTYPE)

    def read(self, name: str) -> Tensor:
        from gguf import dequantize

        # Experts' gate and up are two tensors of the file: the processor puts them into one.
        joined: dict[str, dict[str, Tensor]] = {"tensors": {}}
        for tensor in self._stored[name]:
            result = self._processor.process(
                weights=dequantize(tensor.data, tensor.tensor_type),
                name=tensor.name,
                tensor_key_mapping=self._name_of,
                parsed_parameters=joined,
            )
        if name in joined["tensors"]:
            return joined["tensors"][name].to(GGUF_DTYPE)
        return torch.from_numpy(result.weights.copy()).to(GGUF_DTYPE)


def _open_gguf(path: Path) -> Any:
    """The file's header, read by the package gguf."""
    try:
        from gguf import GGUFReader
    except ImportError as error:
        raise ValueError(f"SRC: {path} needs the package gguf to be read") from error
    try:
        return GGUFReader(path)
    except (ValueError, IndexError, KeyError) as error:  # what it says of a file cut short
        raise ValueError(f"SRC: {path} needs to be a whole GGUF file: {error}") from error


def _on_meta(spec: TensorSpec) -> Tensor:
    return torch.empty(spec.shape, dtype=spec.dtype, device="meta")


def _weights(_: str, names: list[str]) -> list[str]:
    """Of file names those that hold weights, or say where they are."""
    return [name for name in names if name.endswith((*WEIGHTS, ".index.json"))]
