"""Running a model block by block on a calibration text, so that one block at a time is at work."""

from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

WINDOW = 512
"""The number of tokens that are run at once; windows do not see each other."""

Hidden = list[Tensor]
"""The hidden states of each window, float32 [1, T, H]."""


class Blocks:
    """The blocks of a language model, and what each is called with besides the hidden states.

    Raises:
        ValueError: a layer of `paths` is in none of the blocks.
    """

    def __init__(self, model: Any, tokens: Tensor, paths: Iterable[str]) -> None:
        self.prefix, self._list = _find(model, paths)
        self.hidden: Hidden = []
        self._calls: list[list[tuple[tuple[Any, ...], dict[str, Any]]]] = [[] for _ in self._list]
        self._record(model, tokens)

    def __len__(self) -> int:
        return len(self._list)

    def __getitem__(self, index: int) -> nn.Module:
        return self._list[index]

    @torch.inference_mode()
    def _record(self, model: Any, tokens: Tensor) -> None:
        """Call the model with blocks that do nothing, and keep what each is called with."""
        originals = [block.forward for block in self._list]
        for index, block in enumerate(self._list):
            block.forward = self._recorder(index)
        try:
            for window in tokens.split(WINDOW):
                model.base_model(window[None].to(model.device), use_cache=False)
        finally:
            for block, forward in zip(self._list, originals, strict=True):
                block.forward = forward

    def _recorder(self, index: int) -> Callable[..., Tensor]:
        def forward(hidden_states: Tensor, *args: Any, **kwargs: Any) -> Tensor:
            if index == 0:
                self.hidden.append(hidden_states.float())
            self._calls[index].append((_as_float(args), _as_float(kwargs)))
            return hidden_states

        return forward

    @torch.inference_mode()
    def run(self, index: int, windows: int | None = None) -> Iterator[Tensor]:
        """Run one block on the hidden states, or on the first windows of them."""
        calls = self._calls[index][:windows]
        for hidden, (args, kwargs) in zip(self.hidden, calls, strict=False):
            found = self._list[index](hidden, *args, **kwargs)
            yield found if isinstance(found, Tensor) else found[0]

    def advance(self, index: int) -> None:
        """Replace the hidden states by the block's outputs, and let go of the block."""
        self.hidden = list(self.run(index))
        self._calls[index] = []
        self._list[index] = nn.Identity()


def _find(model: Any, paths: Iterable[str]) -> tuple[str, nn.ModuleList]:
    """Find the list of blocks that has the first path, and check that it has all."""
    paths = list(paths)
    for name, module in model.named_modules():
        if isinstance(module, nn.ModuleList) and paths[0].startswith(f"{name}."):
            for path in paths:
                if not path.startswith(f"{name}."):
                    need = f"all quantized layers in {name}, or --exclude for the others"
                    raise ValueError(f"--method needs {need}, got {path}")
            return name, module
    raise ValueError(f"--method needs layers in a list of blocks, got {paths[0]}")


def _as_float(values: Any) -> Any:
    """Convert the floating-point tensors among a call's arguments to float32."""
    if isinstance(values, Tensor):
        return values.float() if values.is_floating_point() else values
    if isinstance(values, dict):
        return {name: _as_float(value) for name, value in values.items()}
    if isinstance(values, tuple | list):
        return type(values)(map(_as_float, values))
    return values


@contextmanager
def hooked(pairs: Iterable[tuple[nn.Module, Callable[..., Any]]]) -> Iterator[None]:
    """Call each function before its module runs, with the module, its args and kwargs."""
    handles = [module.register_forward_pre_hook(hook, with_kwargs=True) for module, hook in pairs]
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()
