"""The source of a conversion: a language model in floats, read one tensor at a time.

It is a Hugging Face folder or a GGUF file.
"""

import shutil
from functools import cached_property
from pathlib import Path
from typing import Any, Protocol

import torch
from torch import Tensor

from nvfp4.checkpoints.files import INDEX_FILE, TensorFiles, TensorSpec
from nvfp4.checkpoints.names import WEIGHT
from nvfp4.checkpoints.parsing import quantization_config, read_json
from nvfp4.checkpoints.schemes import CONFIG_FILE, QUANT_CONFIG_FILE
from nvfp4.checkpoints.skeleton import Skeleton, without_quantization
from nvfp4.checkpoints.storage import NVFP4, QUANTIZED_DTYPES, FloatTensors

WEIGHTS = (".safetensors", ".bin", ".pt", ".pth", ".gguf", ".h5", ".msgpack", ".onnx")
"""The endings of files with weights; all other files of a model folder are copied."""

GGUF_DTYPE = torch.bfloat16
"""The dtype to which all tensors of a GGUF file are dequantized."""


class RawTensors(Protocol):
    """A model's tensors under their names in the file."""

    @property
    def names(self) -> tuple[str, ...]: ...
    def spec(self, name: str) -> TensorSpec: ...
    def read(self, name: str) -> Tensor: ...


class Source:
    """A model in floats, whose tensors have the names of a checkpoint (see Skeleton).

    A tensor is made when it is read. Weights in FP8, MXFP4 and other forms are dequantized then.

    Raises:
        ValueError: it is not such a model, it is quantized to NVFP4 or to a form that is not
            known, or its tensors are not in safetensors or GGUF files.
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
        self.config = without_quantization(AutoConfig.from_pretrained(self.folder, **self.which))
        self.skeleton = Skeleton(self.config)
        self._raw: RawTensors = (
            GgufTensors(reader, self.skeleton) if self.gguf else _folder_tensors(path)
        )
        self._last: tuple[str, dict[str, Tensor]] = ("", {})
        self._published: dict[str, str] = {}  # the stack of each expert's layer, where there is one
        self._shared: dict[str, str] = {}  # the tensor that has the values of an untied one
        self.untied = ""
        """The head's weight, where `untie` gave it one that the source has only as another's."""

    @property
    def folder(self) -> Path:
        return self.path.parent if self.gguf else self.path

    @property
    def which(self) -> dict[str, str]:
        """The arguments that from_pretrained(folder, …) needs to find the model."""
        return {"gguf_file": self.path.name} if self.gguf else {}

    @cached_property
    def _found(self) -> dict[str, tuple[str, TensorSpec]]:
        """The file's tensor for each tensor: the same one, or one of which it is a part."""
        return {
            name: (raw, TensorSpec(tuple(tensor.shape), tensor.dtype))
            for raw in self._raw.names
            for name, tensor in self._split(raw, _on_meta(self._raw.spec(raw))).items()
        }

    def _split(self, raw: str, tensor: Tensor) -> dict[str, Tensor]:
        """All tensors that a tensor of the file gives: as published, and experts apart."""
        published = self.skeleton.originals(raw, tensor)
        found = dict(published)
        for name, each in published.items():
            experts = self.skeleton.experts_in(name, each)
            self._published |= dict.fromkeys(experts, name)
            found |= experts
        return found

    @cached_property
    def tensors(self) -> dict[str, TensorSpec]:
        """The shape and dtype of every tensor; none is read. Experts are apart."""
        found = {name: spec for name, (_, spec) in self._found.items()}
        stacks = set(self._published.values())
        return {name: spec for name, spec in found.items() if name not in stacks}

    def untie(self, head: str) -> None:
        """Give the head a weight of its own, which the source has as the embedding's alone.

        Raises:
            ValueError: the model ties no such weight, or the source has neither.
        """
        name = head + WEIGHT
        shared = self.skeleton.tied_to(name)
        if shared not in self._found:
            need = f"a weight of {head}, or one that it shares"
            raise ValueError(f"SRC needs {need}, got none in {self.path}")
        self._found[name] = self._found[shared]
        self.tensors[name] = self._found[shared][1]
        self._shared[name] = shared
        self.untied = name

    def published(self, name: str) -> tuple[str, TensorSpec]:
        """The tensor that makers publish for this one: itself, or all of a block's experts."""
        name = self._published.get(name, name)
        return name, self._found[name][1]

    def read(self, name: str) -> Tensor:
        """Read a tensor to the CPU; the file's tensor around it is kept for the next call."""
        raw, spec = self._found[name]
        if self._last[0] != raw:
            self._last = ("", {})  # free the previous one first
            self._last = (raw, self._split(raw, self._raw.read(raw)))
        tensor = self._last[1][self._shared.get(name, name)]
        if tensor.shape != spec.shape:
            need, got = list(spec.shape), list(tensor.shape)
            raise ValueError(f"SRC: {name} needs shape {need}, got {got}")
        return tensor

    def copy_others(self, destination: Path) -> None:
        """Copy the other files, such as the tokenizer's: no weights and no config.json."""
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
        """The content of config.json without its quantization."""
        found = self._config_dict()
        if self.untied:
            for part in (found, found.get("text_config")):
                if isinstance(part, dict):
                    part["tie_word_embeddings"] = False
        return found

    def _config_dict(self) -> dict[str, Any]:
        if not self.gguf:
            found = read_json(self.path / CONFIG_FILE)
            for part in (found, found.get("text_config")):
                if isinstance(part, dict):
                    part.pop("quantization_config", None)
            return found
        config = self.config.to_diff_dict()
        config["architectures"] = [type(self.skeleton.model).__name__]
        config["dtype"] = str(GGUF_DTYPE).removeprefix("torch.")
        for key in ("quantization_config", "_name_or_path"):
            config.pop(key, None)
        return config


def _folder_tensors(folder: Path) -> FloatTensors:
    """Open a folder of safetensors files; its weights may be quantized to a known form.

    Raises:
        ValueError: some are NVFP4 already, or are of no known form.
    """
    found = FloatTensors(TensorFiles(folder))
    config = quantization_config(read_json(folder / CONFIG_FILE)) or {}
    method = config.get("quant_method")
    nvfp4 = [name for name, stored in found.stored.items() if stored.form == NVFP4]
    packed = [
        name
        for name in found.names
        if name not in found.stored
        and len(found.shape(name)) > 1
        and found.files.dtype(name) in QUANTIZED_DTYPES
    ]
    if nvfp4 or packed or (config and not found.stored):
        got = method or (QUANT_CONFIG_FILE if (folder / QUANT_CONFIG_FILE).exists() else "unknown")
        name = f", such as {(nvfp4 or packed)[0]}" if nvfp4 or packed else ""
        need = "a model in floats, or one whose quantized weights are of a known form"
        raise ValueError(f"SRC needs {need}, got one quantized ({got}){name}: {folder}")
    return found


class GgufTensors:
    """The tensors of a GGUF file, with transformers' names and order of elements.

    Each is dequantized to bfloat16 when it is read.
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
            # In transformers, a block's experts [E, N, K] have no ".weight" in their name.
            short = tensor.name.removesuffix(".weight")
            if name := self._name_of.get(tensor.name, self._name_of.get(short)):
                self._stored.setdefault(name, []).append(tensor)
            elif tensor.name != "rope_freqs.weight":  # the configuration has its values
                raise ValueError(f"SRC needs tensors that transformers knows, got {tensor.name}")

    @property
    def names(self) -> tuple[str, ...]:
        return tuple(self._stored)

    def spec(self, name: str) -> TensorSpec:
        return TensorSpec(self._shapes[name], GGUF_DTYPE)

    def read(self, name: str) -> Tensor:
        from gguf import dequantize

        # The experts' gate and up are two tensors in the file; the processor joins them.
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
    """Read the file's header with the package gguf."""
    try:
        from gguf import GGUFReader
    except ImportError as error:
        raise ValueError(f"SRC: {path} needs the package gguf to be read") from error
    try:
        return GGUFReader(path)
    except (ValueError, IndexError, KeyError) as error:  # gguf raises these for a file cut short
        raise ValueError(f"SRC: {path} needs to be a whole GGUF file: {error}") from error


def _on_meta(spec: TensorSpec) -> Tensor:
    return torch.empty(spec.shape, dtype=spec.dtype, device="meta")


def _weights(_: str, names: list[str]) -> list[str]:
    """Choose the files that hold weights or an index of weights."""
    return [name for name in names if name.endswith((*WEIGHTS, ".index.json"))]
