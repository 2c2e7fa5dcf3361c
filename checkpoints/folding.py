"""Folding of AWQ's factors: which modules of a block can divide a layer's input by factors."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from nvfp4.checkpoints.blocks import hooked
from nvfp4.checkpoints.skeleton import is_plain_linear

PROBE = 2.0
"""Foldings are tried with factors between 1 / PROBE and PROBE."""

BEFORE = (("v_proj", "o_proj"), ("up_proj", "down_proj"), ("w3", "w2"))
"""Pairs of linear layers: each output channel of the first scales input channels of the second."""

Run = Callable[[], Tensor]
"""A function that runs the block at work on a little input."""


@dataclass(frozen=True)
class Folding:
    """Layers of a block with one input, and the module whose weight is divided by their factors.

    maker: the name in the block of a norm, or of the linear layer before.
    layers: the names of the layers.
    channels: the maker's channel, of `width`, that scales each of the K input channels, int64 [K].
    """

    maker: str
    layers: tuple[str, ...]
    width: int
    channels: Tensor

    def tied(self, f: Tensor) -> Tensor:
        """Give input channels that are one channel of the maker the geometric mean of theirs."""
        channels, zeros = self.channels.to(f.device), f.new_zeros(self.width)
        total = zeros.index_add(0, channels, f.log())
        return (total / zeros.index_add(0, channels, torch.ones_like(f))).exp()[channels]

    def fold(self, block: nn.Module, f: Tensor, dtype: torch.dtype) -> Tensor:
        """Divide the maker's weight by factors [K]; return the factors that result.

        A norm's weight is rounded to `dtype`, in which the checkpoint has it. A linear layer's is
        quantized afterwards, so it is not rounded.
        """
        maker, channels = block.get_submodule(self.maker), self.channels.to(f.device)
        weight: Any = maker.weight.data
        of_maker = f.new_ones(self.width)
        of_maker[channels] = f
        if weight.dim() == 2:
            maker.weight.data = weight / of_maker[:, None]
            return f
        divided = (weight / of_maker).to(dtype).float()
        kept = (weight == 0) | (divided == 0)
        maker.weight.data = torch.where(kept, weight, divided)
        return torch.where(kept, torch.ones_like(weight), weight / divided)[channels]


def find_foldings(block: nn.Module, names: set[str], run: Run) -> list[Folding]:
    """Find the foldings of a block, in the order in which they are to be made.

    names: the linear layers in the block that may be changed. Each folding is tried: with random
    factors folded, the block's output has to stay the same.
    """
    found = [*_linears_before(block, names), *_norms_before(block, names, run)]
    return [folding for folding in found if _changes_nothing(folding, block, run)]


def _linears_before(block: nn.Module, names: set[str]) -> list[Folding]:
    found: list[Folding] = []
    for name in sorted(names):
        parent, dot, leaf = name.rpartition(".")
        for first, second in BEFORE:
            before = f"{parent}{dot}{first}"
            if leaf != second or before not in names:
                continue
            maker, layer = block.get_submodule(before), block.get_submodule(name)
            width, inputs = len(maker.weight), layer.weight.shape[1]  # type: ignore[arg-type, index]
            if maker.bias is None and inputs % width == 0:
                channels = _channels(block.get_submodule(parent), width, inputs)
                found.append(Folding(before, (name,), width, channels))
    return found


def _channels(parent: nn.Module, width: int, inputs: int) -> Tensor:
    """The channel of v_proj for each input of o_proj, where several heads share one of v's."""
    shared = inputs // width
    config: Any = getattr(parent, "config", None)
    heads = getattr(config, "num_key_value_heads", 1) if shared > 1 else 1
    of_head = width // heads
    each = torch.arange(heads * of_head).view(heads, 1, of_head)
    return each.expand(heads, shared, of_head).flatten()


def _norms_before(block: nn.Module, names: set[str], run: Run) -> list[Folding]:
    """Find modules with one vector as weight, whose output goes to linear layers and only there."""
    outputs: dict[int, tuple[str, Tensor]] = {}
    readers: dict[str, set[str]] = {}

    def written(name: str) -> Callable[..., None]:
        def hook(module: nn.Module, args: Any, output: Any) -> None:
            if isinstance(output, Tensor):
                outputs[id(output)] = name, output  # held here, its id is not used again

        return hook

    def read(name: str) -> Callable[..., None]:
        def hook(module: nn.Module, args: Any, kwargs: Any) -> None:
            for value in (*args, *kwargs.values()):
                if id(value) in outputs:
                    readers.setdefault(outputs[id(value)][0], set()).add(name)

        return hook

    own = {name: dict(each.named_parameters(recurse=False)) for name, each in block.named_modules()}
    with_weights = [(block.get_submodule(name), read(name)) for name in own if own[name]]
    handles = [
        block.get_submodule(name).register_forward_hook(written(name))
        for name, parameters in own.items()
        if set(parameters) == {"weight"} and parameters["weight"].dim() == 1
    ]
    try:
        with hooked(with_weights):
            run()
    finally:
        for handle in handles:
            handle.remove()
    return [
        Folding(name, tuple(sorted(layers)), width, torch.arange(width))
        for name, layers in readers.items()
        if layers <= names and all(is_plain_linear(block.get_submodule(each)) for each in layers)
        for width in [len(own[name]["weight"])]
    ]


def _changes_nothing(folding: Folding, block: nn.Module, run: Run) -> bool:
    modules: list[Any] = [block.get_submodule(name) for name in (folding.maker, *folding.layers)]
    kept = [module.weight.data for module in modules]
    generator = torch.Generator().manual_seed(0)
    exponents = torch.rand(folding.width, generator=generator, dtype=torch.float32) * 2 - 1
    want = run()
    made = folding.fold(block, (PROBE**exponents)[folding.channels].to(want.device), torch.float32)
    for module in modules[1:]:
        module.weight.data = module.weight.data * made
    found = run()
    for module, weight in zip(modules, kept, strict=True):
        module.weight.data = weight
    return bool((found - want).norm() <= 1e-4 * want.norm())
