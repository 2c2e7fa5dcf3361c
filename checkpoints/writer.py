"""Writing of a checkpoint: all of it appears or none, and memory holds one tensor at a time."""

import json
import os
import shutil
import struct
import uuid
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import BinaryIO

import torch
from huggingface_hub import split_state_dict_into_shards_factory
from torch import Tensor

from nvfp4.checkpoints.files import DTYPE_NAMES, INDEX_FILE, SHARD_PATTERN, TensorSpec


def refuse_existing(destination: Path) -> None:
    """Raise ValueError if `destination` exists and is not an empty folder."""
    if destination.exists() and (not destination.is_dir() or any(destination.iterdir())):
        raise ValueError(f"DST needs a new or empty folder, got {destination}, which exists")


@contextmanager
def published(destination: Path) -> Iterator[Path]:
    """Yield a folder to write into; without an error it is synced and renamed to `destination`.

    After an error it is removed. A crash leaves a folder with another name, which begins with a
    dot.
    """
    refuse_existing(destination)
    destination.parent.mkdir(parents=True, exist_ok=True)
    partial = destination.parent / f".{destination.name}.{uuid.uuid4().hex[:8]}.partial"
    partial.mkdir()
    try:
        yield partial
        for path in (*partial.rglob("*"), partial):
            _to_disk(path)
        partial.rename(destination)
        _to_disk(destination.parent)
    except BaseException as error:
        shutil.rmtree(partial, ignore_errors=True)
        # Such as a full disk's error, which names no file.
        if isinstance(error, OSError) and error.errno and error.filename is None:
            raise OSError(error.errno, error.strerror, str(destination)) from error
        raise


def _to_disk(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


class ShardedWriter:
    """A writer of safetensors files whose tensors come one by one, in any order, each once.

    Their shapes are known beforehand, so each is written to its place at once. The library's own
    writer needs all tensors of a file in memory. It is a context manager: leaving it without an
    error writes the index if there are several files.
    """

    def __init__(self, folder: Path, specs: Mapping[str, TensorSpec], shard_size: str) -> None:
        self._folder = folder
        self._specs = specs
        try:
            split = split_state_dict_into_shards_factory(
                dict(specs),
                get_storage_size=lambda spec: spec.nbytes,
                filename_pattern=SHARD_PATTERN,
                max_shard_size=shard_size,
            )
        except ValueError as error:
            need = "a size such as 5GB or 500MB"
            raise ValueError(f"--shard-size needs {need}, got {shard_size!r}") from error
        self._file_of = split.tensor_to_filename
        self._tensors_of = split.filename_to_tensors
        self._left = set(specs)
        self._opened = ExitStack()
        self._files: dict[str, BinaryIO] = {}
        self._offsets: dict[str, int] = {}

    def __enter__(self) -> "ShardedWriter":
        for file, names in self._tensors_of.items():
            # Wide elements come first: each tensor then starts at a multiple of its element size.
            by_width = sorted(names, key=lambda name: -self._specs[name].dtype.itemsize)
            header, offsets = _header({name: self._specs[name] for name in by_width})
            self._files[file] = self._opened.enter_context(open(self._folder / file, "wb"))
            self._files[file].write(header)
            self._offsets |= offsets
        return self

    def write(self, name: str, tensor: Tensor) -> None:
        spec = TensorSpec(tuple(tensor.shape), tensor.dtype)
        if name not in self._left or spec != self._specs[name]:
            raise RuntimeError(f"{name}: planned {self._specs.get(name)} once, got {spec}")
        self._left.remove(name)
        file = self._files[self._file_of[name]]
        file.seek(self._offsets[name])
        file.write(tensor.contiguous().reshape(-1).view(torch.uint8).numpy().data)

    def __exit__(self, kind: object, *_: object) -> None:
        self._opened.close()
        if kind is not None:
            return
        if self._left:
            raise RuntimeError(f"never written: {sorted(self._left)}")
        if len(self._tensors_of) > 1:
            total = sum(spec.nbytes for spec in self._specs.values())
            index = {"metadata": {"total_size": total}, "weight_map": self._file_of}
            (self._folder / INDEX_FILE).write_text(json.dumps(index, indent=2) + "\n")


def _header(specs: Mapping[str, TensorSpec]) -> tuple[bytes, dict[str, int]]:
    """Make a file's header, and the offset in the file of each tensor.

    The format is an 8-byte length, a JSON object of that length, and the tensors one by one.
    """
    table: dict[str, object] = {"__metadata__": {"format": "pt"}}
    begin, begins = 0, {}
    for name, spec in specs.items():
        begins[name] = begin
        end = begin + spec.nbytes
        dtype, shape = DTYPE_NAMES[spec.dtype], list(spec.shape)
        table[name] = {"dtype": dtype, "shape": shape, "data_offsets": [begin, end]}
        begin = end
    text = json.dumps(table).encode()
    text += b" " * (-len(text) % 8)
    start = 8 + len(text)
    return struct.pack("<Q", len(text)) + text, {name: start + at for name, at in begins.items()}
