"""Experts that a file holds in one packed tensor a projection, read as separate layers.

Makers write such stacks for classes that hold a block's experts so:

    experts.gate_up_proj [E, 2I, H], experts.down_proj [E, H, I]     most classes
    [E, H, 2I] and [E, I, H], for x W                                Llama 4, gpt-oss
    gate and up in turn: rows 0, 2, ... of gate, 1, 3, ... of up     gpt-oss

The blocks of 16 elements lie along H in gate_up_proj and along I in down_proj, however the tensors
are turned. Then a layer of one expert is a part of the stack, and nothing is rounded again. Blocks
along the other dimension cannot be multiplied: such stacks stay as they are, and are dequantized.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field
from math import prod
from pathlib import Path
from typing import Any, NamedTuple

from torch import Tensor

from nvfp4.checkpoints.files import TensorFiles
from nvfp4.checkpoints.names import DOWN, EXPERT_PARTS, GATE, UP, WEIGHT
from nvfp4.checkpoints.parsing import read_json
from nvfp4.checkpoints.schemes import BIAS, CONFIG_FILE, Format
from nvfp4.checkpoints.storage import INPUT_SCALES, NVFP4, stored_weights

STACKS: Mapping[str, tuple[str, ...]] = {
    "gate_up_proj": (GATE, UP),
    "input_linear": (GATE, UP),
    "output_linear": (DOWN,),
    **{leaf: (part,) for leaf, part in EXPERT_PARTS.items()},
}
"""The names of stacks, and the layers that each holds; Granite has input_ and output_linear."""

INTERLEAVED = ("gpt_oss",)
"""The model types in whose stacks gate and up stand in turn."""

EXPERTS = "experts"


class Cut(NamedTuple):
    """Which part of a stack belongs to a layer.

    It is one part of an expert's rows, of so many `parts`. A `turned` stack has the rows last.
    """

    expert: int
    part: int
    parts: int
    interleaved: bool
    turned: bool

    def rows(self, stack: Tensor) -> Tensor:
        """Cut data, scales or a bias: the layer's rows, one after another in memory."""
        rows = stack[self.expert]
        rows = rows.mT if self.turned and rows.dim() == 2 else rows
        rows = (
            rows[self.part :: self.parts] if self.interleaved else rows.chunk(self.parts)[self.part]
        )
        return rows.contiguous()

    def scale(self, stack: Tensor) -> Tensor:
        """Cut a global scale: there is one for all, one an expert, or one a layer."""
        flat = stack.reshape(-1)
        experts = stack.shape[0] if stack.dim() else 1
        if flat.numel() == 1:
            return flat[0]
        return flat[self.expert * (flat.numel() // experts) + self.part % (flat.numel() // experts)]


class Piece(NamedTuple):
    """One expert's part of a tensor in the file.

    tensor: the tensor's name. cut: which part. shape: the part's, () for a global scale.
    """

    tensor: str
    cut: Cut
    shape: tuple[int, ...]


@dataclass(frozen=True)
class Stack:
    """A projection of all experts of a block: gate and up, or one of three.

    stored: the names of its tensors by their roles. rows, columns: N of all parts, and K.
    turned: K comes before N, as x W has it.
    """

    weight: str
    stored: dict[str, str]
    experts: str
    parts: tuple[str, ...]
    count: int
    rows: int
    columns: int
    turned: bool


@dataclass(frozen=True)
class Stacks:
    """The stacks of a checkpoint.

    apart: those whose layers are read apart. kept: the weights that stay as they are, by the names
    that they have in floats, and why. of: the stack of each layer, both without ".weight".
    """

    apart: list[Stack] = field(default_factory=list)
    kept: dict[str, str] = field(default_factory=dict)
    of: dict[str, str] = field(default_factory=dict)


class ExpertFiles(TensorFiles):
    """A checkpoint's tensors, where the layers of stacked experts go by names of their own."""

    def __init__(self, folder: Path, format: Format) -> None:
        super().__init__(folder)
        self.stacks = Stacks()
        self._pieces: dict[str, Piece] = {}
        self._hidden: set[str] = set()
        config = _text_config(folder)
        interleaved = config.get("model_type") in INTERLEAVED
        for stacks in _stacks_of_blocks(self).values():
            reason = _unusable(self, stacks, format, config.get("hidden_size"))
            for stack in stacks:
                if reason:
                    self.stacks.kept[stack.weight] = reason
                else:
                    self._add(stack, format, interleaved and len(stack.parts) == 2)

    def _add(self, stack: Stack, format: Format, interleaved: bool) -> None:
        """Take the layers of a stack apart."""
        self.stacks.apart.append(stack)
        tensors = _tensors(self, stack, format)
        self._hidden.update(tensors.values())
        n = stack.rows // len(stack.parts)
        for expert in range(stack.count):
            for part, layer in enumerate(stack.parts):
                cut = Cut(expert, part, len(stack.parts), interleaved, stack.turned)
                module = f"{stack.experts}.{expert}.{layer}"
                self.stacks.of[module] = stack.weight.removesuffix(WEIGHT)
                for leaf, tensor in tensors.items():
                    shape: tuple[int, ...] = ()
                    if leaf == BIAS:
                        shape = (n,)
                    elif leaf in (format.data, format.scales):
                        columns = super().shape(tensor)[1 if stack.turned else 2]
                        shape = (n, columns)
                    self._pieces[f"{module}.{leaf}"] = Piece(tensor, cut, shape)

    def __contains__(self, name: object) -> bool:
        return name in self._pieces or (super().__contains__(name) and name not in self._hidden)

    @property
    def names(self) -> tuple[str, ...]:
        return (*(name for name in super().names if name not in self._hidden), *self._pieces)

    def where(self, name: str) -> str:
        if piece := self._pieces.get(name):
            return f"{name}, a part of {super().where(piece.tensor)}"
        return super().where(name)

    def shape(self, name: str) -> tuple[int, ...]:
        return self._pieces[name].shape if name in self._pieces else super().shape(name)

    def dtype(self, name: str) -> str:
        piece = self._pieces.get(name)
        return super().dtype(piece.tensor if piece else name)

    def read(self, name: str) -> Tensor:
        piece = self._pieces.get(name)
        if piece is None:
            return super().read(name)
        stack = super().read(piece.tensor)
        return piece.cut.rows(stack) if piece.shape else piece.cut.scale(stack)


def _text_config(folder: Path) -> Mapping[str, Any]:
    """The configuration of the model, or of the part of it that reads text."""
    path = folder / CONFIG_FILE
    config = read_json(path) if path.exists() else {}
    text = config.get("text_config")
    return text if isinstance(text, dict) else config


def _stacks_of_blocks(files: TensorFiles) -> dict[str, list[Stack]]:
    """Find the NVFP4 stacks, by their modules of experts."""
    found: dict[str, list[Stack]] = {}
    names = [n for n in files.names if files.dtype(n) == "U8" and len(files.shape(n)) == 3]
    for weight, stored in stored_weights(files, names).items():
        module, _, leaf = weight.removesuffix(WEIGHT).rpartition(".")
        if stored.form != NVFP4 or leaf not in STACKS:
            continue
        experts = module if module.split(".")[-1] == EXPERTS else f"{module}.{EXPERTS}".lstrip(".")
        count, a, b = files.shape(stored.data)
        turned = b == files.shape(stored.parts["scales"])[2]
        rows, columns = (b, 2 * a) if turned else (a, 2 * b)
        stack = Stack(weight, stored.parts, experts, STACKS[leaf], count, rows, columns, turned)
        found.setdefault(experts, []).append(stack)
    return found


def _unusable(files: TensorFiles, stacks: list[Stack], format: Format, hidden: Any) -> str:
    """The reason why a block's stacks cannot run as experts in NVFP4; "" if they can."""
    held = sorted(part for stack in stacks for part in stack.parts)
    if held not in (sorted([GATE, UP, DOWN]), sorted([UP, DOWN])):
        return f"of its block only {' and '.join(held)} are in NVFP4"
    (down,) = (stack for stack in stacks if stack.parts == (DOWN,))
    for first in stacks:
        if first is not down:
            same = first.count == down.count
            count = len(first.parts)
            right = first.rows == count * down.columns and first.columns == down.rows
            turned = first.columns == count * down.rows and first.rows == down.columns
            if turned and (not right or first.rows == hidden != first.columns):
                return "its blocks lie along the outputs, not along what is summed"
            if not right or not same:
                return "its sizes do not fit those of the other stacks of its block"
    return next((reason for stack in stacks if (reason := _not_apart(files, stack, format))), "")


def _not_apart(files: TensorFiles, stack: Stack, format: Format) -> str:
    """The reason why the tensors of a stack do not give each layer its own; "" if they do."""
    if "pre_quant" in stack.stored:
        return "its inputs have factors of AWQ"
    if "global" not in stack.stored:
        return "it has no global scale"
    if stack.stored["global"].endswith("global_scale") != format.divides:
        return f"its global scale is not one of {format.name}"
    sizes = 1, stack.count, stack.count * len(stack.parts)
    for leaf, name in _tensors(files, stack, format).items():
        shape = files.shape(name)
        scalar = leaf in (format.global_scale, format.input_global_scale)
        if (
            scalar
            and prod(shape) not in sizes
            or leaf == BIAS
            and shape != (stack.count, stack.rows)
        ):
            return f"{name} has the shape {list(shape)}"
    return ""


def _tensors(files: TensorFiles, stack: Stack, format: Format) -> dict[str, str]:
    """The names of a stack's tensors, by what a layer's are called in the format."""
    weight, stored = stack.weight, stack.stored
    found = {
        format.data: stored["data"],
        format.scales: stored["scales"],
        format.global_scale: stored["global"],
    }
    for role in INPUT_SCALES:
        if role in stored:
            found[format.input_global_scale] = stored[role]
    is_layer = weight.endswith(WEIGHT)
    bias = f"{weight.removesuffix(WEIGHT)}.{BIAS}" if is_layer else f"{weight}_{BIAS}"
    if bias in files:
        found[BIAS] = bias
    return found
