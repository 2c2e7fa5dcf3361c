"""Calibration: a model in floats run over a text, to see how large the inputs of its linear layers
get.
"""

from collections.abc import Callable, Iterable, Mapping
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from nvfp4.checkpoints.skeleton import gated, is_experts

WINDOW = 512
"""Tokens of the text that are run at once, each window for itself."""


class Amax:
    """The largest magnitude of each linear layer's input so far, float32 []: by the layer's path in
    the model; of experts, of what all of them take, and of each one's intermediate, [E].
    """

    def __init__(self) -> None:
        self.inputs: dict[str, Tensor] = {}
        self.intermediates: dict[str, Tensor] = {}

    def see(self, path: str, x: Tensor) -> None:
        amax = _amax(x)
        self.inputs[path] = torch.maximum(self.inputs.get(path, amax), amax)

    def see_expert(self, path: str, experts: int, expert: int, h: Tensor) -> None:
        of_all = self.intermediates.setdefault(path, torch.zeros(experts))
        of_all[expert] = torch.maximum(of_all[expert], _amax(h))

    def of_expert(self, path: str, expert: int) -> Tensor:
        """An expert's own; of one that no token went to the largest of the others."""
        of_all = self.intermediates[path]
        return of_all[expert] if of_all[expert] > 0 else of_all.amax()


def _amax(x: Tensor) -> Tensor:
    return x.detach().abs().amax().float().cpu() if x.numel() else torch.zeros(())


@torch.inference_mode()
def calibrate(
    model: Any, tokens: Tensor, paths: Iterable[str], step: Callable[[str, int], Callable[[], None]]
) -> Amax:
    """Run the model over tokens [T] and see the inputs of the linear layers, and of the modules of
    experts, at these paths.

    Raises:
        ValueError: an input that is NaN or Inf, or that was never seen.
    """
    amax, paths = Amax(), tuple(dict.fromkeys(paths))
    modules: Mapping[str, nn.Module] = dict(model.named_modules())
    hooks = [
        modules[path].register_forward_pre_hook(_hook_of(path, amax), with_kwargs=True)
        for path in paths
    ]
    windows = tokens.split(WINDOW)
    done = step("calibrate", len(windows))
    try:
        for window in windows:
            model(window[None].to(model.device))
            done()
    finally:
        for hook in hooks:
            hook.remove()
    for path in paths:
        seen = amax.inputs.get(path)
        if (
            seen is None
            or not seen.isfinite()
            or not amax.intermediates.get(path, seen).isfinite().all()
        ):
            got = "none" if seen is None else "NaN or Inf"
            raise ValueError(f"--calibrate needs finite inputs of {path}, got {got}")
    return amax


def _hook_of(path: str, amax: Amax) -> Callable[..., None]:
    def hook(module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        values = (*args, *kwargs.values())
        amax.see(path, values[0])
        if is_experts(module):
            _see_intermediates(path, amax, module, values[0], values[1])

    return hook


def _see_intermediates(path: str, amax: Amax, experts: Any, x: Tensor, topk_ids: Tensor) -> None:
    """act(gate) * up of each expert that tokens x [M, H] go to: the module keeps it to itself."""
    for expert in range(experts.gate_up_proj.shape[0]):
        token, _ = torch.where(topk_ids == expert)
        h = gated(experts, F.linear(x[token], experts.gate_up_proj[expert]))
        amax.see_expert(path, experts.gate_up_proj.shape[0], expert, h)
