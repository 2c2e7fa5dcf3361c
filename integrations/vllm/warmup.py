"""Warm-up in vLLM: the kernels of all layers are compiled together, before any layer runs.

vLLM captures CUDA graphs later, and then nothing may be compiled. It creates all layers, loads all
weights, and then lets each layer process its own. So when the first one does, all are known.
"""

import logging
import time
from collections.abc import Callable, Hashable, Sequence
from typing import NamedTuple, Protocol
from weakref import ref

import torch

from nvfp4.ahead.warmup import compiling
from nvfp4.backends.workload import Workload

logger = logging.getLogger("vllm.nvfp4")

TOLD_EVERY = 5.0
"""Seconds between two lines about progress."""


class WarmsUp(Protocol):
    """A quantization method whose layers are warmed up."""

    def workloads(self, layer: torch.nn.Module) -> Sequence[Workload]:
        """The GEMMs of a loaded layer, before its weights are processed."""


class Planned(NamedTuple):
    """A layer that vLLM created."""

    method: WarmsUp
    layer: "ref[torch.nn.Module]"


_PLANNED: list[Planned] = []
_RAN: set[Hashable] = set()


def plan(method: WarmsUp, layer: torch.nn.Module) -> None:
    """Remember a layer whose kernels are to be compiled."""
    _PLANNED.append(Planned(method, ref(layer)))


def compile_planned(device: torch.device) -> None:
    """Compile the kernels of all layers remembered since the last time, and log how many."""
    layers = [(method, layer()) for method, layer in _PLANNED]
    _PLANNED.clear()
    if device.type != "cuda":
        return
    workloads = dict.fromkeys(
        work for method, layer in layers if layer is not None for work in method.workloads(layer)
    )
    begin = told = time.monotonic()
    compiled = found = 0
    for kernels, line in compiling(list(workloads), device):
        found += line.endswith("cached")
        compiled += not line.endswith("cached")
        if time.monotonic() - told > TOLD_EVERY:
            told = time.monotonic()
            logger.info("nvfp4: %d of %d kernels are compiled", found + compiled, kernels)
    if workloads:
        seconds = time.monotonic() - begin
        message = "nvfp4: %d shapes of weights; compiled %d kernels and found %d in %.1f s"
        logger.info(message, len(workloads), compiled, found, seconds)


def run_first(device: torch.device, form: Hashable, run: Callable[[], object]) -> None:
    """Run the calls of the first layer of a form, which loads the kernels; others need none."""
    if device.type == "cuda" and (device, form) not in _RAN:
        run()
        _RAN.add((device, form))
