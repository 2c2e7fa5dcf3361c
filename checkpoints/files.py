"""A folder of safetensors files, whose tensors are read one at a time through a memory map.

It holds model.safetensors, or shards and model.safetensors.index.json, as Hugging Face writes them.
"""

from collections.abc import Sequence
from math import prod
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor

from nvfp4.checkpoints.parsing import read_json

SINGLE_FILE = "model.safetensors"
INDEX_FILE = "model.safetensors.index.json"
SHARD_PATTERN = "model{suffix}.safetensors"

DTYPE_NAMES = {
    torch.uint8: "U8",
    torch.float8_e4m3fn: "F8_E4M3",
    torch.bfloat16: "BF16",
    torch.float16: "F16",
    torch.float32: "F32",
    torch.int64: "I64",
    torch.int32: "I32",
}
"""The names in safetensors of the dtypes that are written here."""

FLOATS = tuple(DTYPE_NAMES[dtype] for dtype in (torch.bfloat16, torch.float16, torch.float32))


class TensorSpec(NamedTuple):
    """The shape and dtype of a tensor."""

    shape: tuple[int, ...]
    dtype: torch.dtype

    @property
    def nbytes(self) -> int:
        return prod(self.shape) * self.dtype.itemsize


class TensorFiles:
    """The tensors of a checkpoint, by name; opening it reads only the files' headers.

    Raises:
        ValueError: there is no safetensors file; or one is missing, cut short, or lacks a tensor
            that the index says it has.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self._open: dict[str, Any] = {}
        self._file_of = self._find()

    def _find(self) -> dict[str, str]:
        index = self.folder / INDEX_FILE
        if not index.exists():
            return dict.fromkeys(self._file(SINGLE_FILE).offset_keys(), SINGLE_FILE)
        found = read_json(index).get("weight_map")
        if not isinstance(found, dict):
            raise ValueError(f"{index}: weight_map needs tensors' files by name, got {found!r}")
        held = {file: set(self._file(file).keys()) for file in sorted(set(found.values()))}
        for name, file in found.items():
            if name not in held[file]:
                raise ValueError(f"{self.folder / file} needs the tensor {name} of the index")
        return found

    def _file(self, file: str) -> Any:
        from safetensors import SafetensorError, safe_open  # models are quantized without it

        if file not in self._open:
            path = self.folder / file
            if not path.is_file():
                raise ValueError(f"{path} needs to exist, got no such file")
            try:
                self._open[file] = safe_open(path, framework="pt")
            except (SafetensorError, OSError) as error:
                raise ValueError(f"{path} needs to be a whole safetensors file: {error}") from error
        return self._open[file]

    def __contains__(self, name: object) -> bool:
        return name in self._file_of

    @property
    def names(self) -> tuple[str, ...]:
        return tuple(self._file_of)

    def where(self, name: str) -> str:
        """Name the tensor and its file, for a message."""
        return f"{name} in {self.folder / self._file_of[name]}"

    def shape(self, name: str) -> tuple[int, ...]:
        return tuple(self._slice(name).get_shape())

    def dtype(self, name: str) -> str:
        """The dtype's name in safetensors, such as "BF16"."""
        return self._slice(name).get_dtype()

    def spec(self, name: str) -> TensorSpec:
        """The tensor's shape and dtype; ValueError for a dtype that is not written here."""
        for dtype, known in DTYPE_NAMES.items():
            if known == self.dtype(name):
                return TensorSpec(self.shape(name), dtype)
        need = f"one of {', '.join(DTYPE_NAMES.values())}"
        raise ValueError(f"{self.where(name)} needs dtype {need}, got {self.dtype(name)}")

    def read(self, name: str) -> Tensor:
        """Return a tensor as a view of the mapped file; pages are loaded when they are touched."""
        return self._file(self._file_of[name]).get_tensor(name)

    def checked(self, name: str, dtypes: Sequence[str], dim: int) -> Tensor:
        """Read a tensor that needs one of these dtypes and so many dimensions.

        Raises:
            ValueError: it has others; the message names the tensor and its file.
        """
        if name not in self:
            raise ValueError(f"{self.folder} needs the tensor {name}, got none")
        if (got := self.dtype(name)) not in dtypes:
            raise ValueError(f"{self.where(name)} needs dtype {' or '.join(dtypes)}, got {got}")
        if len(shape := self.shape(name)) != dim:
            need = f"{dim} dimension{'s' * (dim != 1)}"
            raise ValueError(f"{self.where(name)} needs {need}, got shape {list(shape)}")
        return self.read(name)

    def _slice(self, name: str) -> Any:
        return self._file(self._file_of[name]).get_slice(name)
