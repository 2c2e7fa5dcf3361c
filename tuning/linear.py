"""The tiles for which `linear` is tuned, and the measurement that picks among them."""

from collections.abc import Callable, Iterable, Iterator
from functools import partial

import torch

import nvfp4
from nvfp4.backends.target import target_of
from nvfp4.backends.triton import linear
from nvfp4.backends.triton.gemm.config import COST, K_GROUP, MmConfig, choose_config
from nvfp4.backends.triton.gemm.tuned import Config, Pick, Picks, config_from, splits
from nvfp4.backends.workload import warmed_up
from nvfp4.calls import Linear
from nvfp4.tuning.sweep import DEVICE, WEIGHT_COPIES, Planned, Plans, sweep

TOKENS = (1, 8, 16, 32, 64, 128, 256, 512, 1024, 2048, 4096, 8192)
"""Numbers of tokens that are measured unless others are asked for."""

_TILES = {
    8: ((8, 64, 256, 4, 3), (8, 64, 256, 4, 4), (8, 32, 256, 2, 4), (8, 128, 256, 4, 3),
        (16, 64, 256, 4, 4), (16, 32, 256, 2, 4)),
    16: ((16, 64, 256, 4, 3), (16, 64, 256, 4, 4), (16, 32, 256, 2, 3), (16, 64, 256, 2, 3),
         (16, 64, 128, 4, 3), (16, 32, 256, 4, 3)),
    32: ((32, 64, 256, 4, 3), (32, 64, 256, 4, 4), (32, 128, 256, 8, 3)),
    64: ((64, 64, 256, 4, 3), (64, 128, 256, 8, 3), (64, 128, 128, 4, 3), (64, 64, 256, 4, 2)),
    256: ((64, 64, 256, 4, 2), (64, 64, 256, 4, 3), (64, 128, 128, 4, 3), (64, 128, 256, 8, 3),
          (128, 64, 128, 4, 3), (128, 64, 256, 8, 3), (128, 128, 128, 8, 3), (128, 128, 128, 4, 3),
          (256, 64, 128, 8, 3), (256, 128, 128, 8, 3)),
    1 << 30: ((256, 128, 128, 8, 3), (128, 128, 128, 8, 3), (128, 256, 128, 8, 3)),
}  # fmt: skip
"""The first fields of each MmConfig that is worth timing, by the most tokens it is timed with."""


def linear_problem(m: int, n: int, k: int, copies: int) -> Callable[[Config], Plans]:
    """Activations bf16 [M, K] and a weight [N, K], the latter in `copies` copies."""
    torch.manual_seed(0)
    x = torch.randn(m, k, device=DEVICE, dtype=torch.bfloat16)
    w = nvfp4.quantize_weight(torch.randn(n, k, device=DEVICE, dtype=torch.bfloat16))
    weights = [(w.data.clone(), w.scales.clone()) for _ in range(copies)]
    p, sm = w.global_scale.view(1), target_of(x.device).sm

    def plans_of(config: Config) -> Plans:
        def plan(data: torch.Tensor, scales: torch.Tensor) -> Planned:
            out = torch.empty(m, n, dtype=torch.bfloat16, device=DEVICE)
            return out, linear.plan(Linear(x, data, scales, p), out, sm, config)

        return [partial(plan, data, scales) for data, scales in weights]

    return plans_of


def linear_configs(m: int, k: int) -> Iterator[Config]:
    """The tiles worth timing with m tokens. Up to 16 tokens, those that split K are among them."""
    decode = m <= 16
    for tile in next(tiles for most, tiles in _TILES.items() if m <= most):
        for split_k in (1, 3, 4, 5, 6, 8) if decode else (1,):
            for maxnreg in (None, 80, 64) if decode and DEVICE.type == "cuda" else (None,):
                yield MmConfig(*tile, split_k, maxnreg)
    if target_of(DEVICE).sm == 90 and k % K_GROUP == 0:
        for config in COST:
            if m / 4 <= config.BM < 2 * max(m, 16):
                yield config
                yield config._replace(stream_k=True)


def tune_linear(
    shapes: Iterable[tuple[int, int]], tokens: Iterable[int], advance: Callable[[], None]
) -> Picks:
    """Measure the fastest tiles for weights of these shapes (N, K) and these numbers of tokens.

    Each pick has two tiles. One is the fastest of those that gave the right result. The other is
    the fastest of those that gave the bits of the tile that is chosen without measuring.
    Numbers of tokens are those that warming up compiles for (workload.warmed_up).
    `advance` is called after each measurement.
    """
    sm = target_of(DEVICE).sm
    counts = sorted(set(map(warmed_up, tokens)))
    picks: Picks = {}
    for n, k in shapes:
        for m in counts:
            chosen = choose_config(m, n, k, sm, may_split=False)
            others = [config for config in linear_configs(m, k) if config != chosen]
            problem = partial(linear_problem, m, n, k)
            rows = sweep(problem, [chosen, *others], WEIGHT_COPIES, exact=False)
            right = [row for row in rows if row.get("right")]
            whole = [
                row for row in right if row["same_bits"] and not splits(config_from(row["config"]))
            ]
            if not whole:
                raise RuntimeError(f"nvfp4 tune: no tile runs {m} x {n} x {k} here: {rows[0]}")
            pick = Pick(m, config_from(right[0]["config"]), config_from(whole[0]["config"]))
            picks.setdefault((n, k), []).append(pick)
            advance()
    return picks
