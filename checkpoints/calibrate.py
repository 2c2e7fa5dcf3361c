"""Calibration: run a model in floats over a text and record how large its layers' inputs get."""

from collections.abc import Callable, Iterable, Mapping
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from nvfp4.checkpoints.experts import activated, is_experts, stacks_of

WINDOW = 512
"""The number of tokens that are run at once; windows do not see each other."""


class Amax:
    """The largest magnitudes seen so far, by the path of a layer in the model.

    inputs: of a linear layer's input, or of the input of a block's experts, float32 [].
    intermediates: of act(gate) * up, for each expert of a block, float32 [E].
    """

    def __init__(self) -> None:
        self.inputs: dict[str, Tensor] = {}
        self.intermediates: dict[str, Tensor] = {}

    def see(self, path: str, x: Tensor) -> None:
        amax = _amax(x)
        self.inputs[path] = torch.maximum(self.inputs.get(path, amax), amax)

    def see_expert(self, path: str, experts: int, expert: int, h: Tensor) -> None:
        of_all = self.intermediates.setdefault(path, torch.zeros(experts, dtype=torch.float32))
        of_all[expert] = torch.maximum(of_all[expert], _amax(h))

    def of_expert(self, path: str, expert: int) -> Tensor:
        """Return an expert's maximum; the largest of all experts if no token went to this one."""
        of_all = self.intermediates[path]
        return of_all[expert] if of_all[expert] > 0 else of_all.amax()


def _amax(x: Tensor) -> Tensor:
    return (
        x.detach().abs().amax().float().cpu() if x.numel() else torch.zeros((), dtype=torch.float32)
    )


@torch.inference_mode()
def calibrate(
    model: Any, tokens: Tensor, paths: Iterable[str], step: Callable[[str, int], Callable[[], None]]
) -> Amax:
    """Run the model over tokens [T] and record the inputs of the layers at these paths.

    A path leads to a linear layer, or to the module of a block's experts.

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
            _see_intermediates(path, amax, module, *values[:2])

    return hook


def _see_intermediates(
    path: str, amax: Amax, experts: Any, x: Tensor, topk_ids: Tensor | None = None
) -> None:
    """Recompute act(gate) * up of each expert for tokens [M, H]: hooks do not see it.

    Without topk_ids the tokens are in equal parts, one for each expert.
    """
    w13, _, bias, _ = stacks_of(experts)
    for expert in range(w13.shape[0]):
        if topk_ids is None:
            tokens = x.reshape(w13.shape[0], -1, x.shape[-1])[expert]
        else:
            tokens = x[torch.where(topk_ids == expert)[0]]
        gate_up = F.linear(tokens, w13[expert], None if bias is None else bias[expert])
        h = activated(experts, gate_up)
        amax.see_expert(path, w13.shape[0], expert, h)
