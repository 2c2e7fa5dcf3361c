"""The plan of the benchmark, and the form of its findings."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import NamedTuple

from nvfp4.demo.measure import Progress
from nvfp4.spec.scale_rules import AMAX_OVER_SIX

DYNAMIC = "dynamic"
"""The word for activation scales that are found in each call."""

STATIC_H = "static h"
"""The word for a scale of act(gate) * up for each expert, calibrated on other tokens."""

BEST_SCALES = "best of all scales"
"""The word for activations that the best of all E4M3 scales of each block rounds: the bound of any
rule that chooses a block's scale.
"""

REAL = "real model"
"""The word for a real model's weights, with activations on the demo's text."""

Step = Callable[[str, int], Progress]
"""A function that opens a progress bar (title, total) and returns one that advances it."""


@dataclass(frozen=True)
class Plan:
    """The layers' sizes, and how many tokens each measurement takes.

    moe, shared: (hidden, intermediate) of mixtures of experts and of shared experts.
    linear: (N, K) of single projections.
    experts: the experts held here. experts_of: all experts, from which a router chooses top_k.
    tokens: tokens of the accuracy. timed: numbers of tokens that are timed, `rounds` times each.
    real: the most tokens that the real model reads. scale_rule: of activations' block scales.
    """

    moe: tuple[tuple[int, int], ...] = ((7168, 2048), (4096, 2048), (4096, 3072))
    shared: tuple[tuple[int, int], ...] = ((7168, 2048),)
    linear: tuple[tuple[int, int], ...] = ((6144, 3584), (9216, 3584), (7168, 2048))
    experts: int = 32
    experts_of: int = 256
    top_k: int = 8
    tokens: int = 512
    timed: tuple[int, ...] = (16, 256, 4096)
    rounds: int = 15
    real: int = 512
    seed: int = 0
    scale_rule: str = AMAX_OVER_SIX


ON_GPU = Plan()
ON_CPU = Plan(experts=8, experts_of=16, top_k=8, tokens=32, timed=(32,), rounds=3, real=256)
"""The real layer sizes with fewer experts and tokens: two cores take two minutes."""


class Accuracy(NamedTuple):
    """Cosine similarity of a layer's NVFP4 output with bf16, for each choice of bf16's weights.

    same_weights: bf16 has the NVFP4 weights, dequantized. What is left is the error of quantizing
    activations, and this is what the bf16 reference of an NVFP4 checkpoint is.
    original_weights: bf16 has the weights from before they were quantized.
    """

    layer: str
    data: str
    scales: str
    same_weights: float
    original_weights: float
