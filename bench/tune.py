"""Measuring by which tiles `linear` is to run on this machine (backends/triton/tuned.py)."""

from collections.abc import Callable, Iterable

from nvfp4.backends.contract import target_of
from nvfp4.backends.triton.gemm.config import choose_config
from nvfp4.backends.triton.gemm.tuned import Pick, Picks, config_from, splits
from nvfp4.bench.sweep import DEVICE, linear_configs, sweep

TOKENS = (1, 8, 16, 32, 64, 128, 256, 512, 1024, 2048, 4096, 8192)


def measure(
    shapes: Iterable[tuple[int, int]],
    tokens: Iterable[int],
    advance: Callable[[], None],
) -> Picks:
    """Weights' (N, K), numbers of tokens -> the fastest of the tiles that gave the right result,
    and of those that gave, to the bit, the one of the tile that is chosen without being measured.

    Numbers over 128 are rounded up to multiples of it: those are what warming up compiles for.
    """
    sm = target_of(DEVICE).sm
    counts = sorted({m if m <= 128 else -(-m // 128) * 128 for m in tokens})
    picks: Picks = {}
    for n, k in shapes:
        for m in counts:
            chosen = choose_config(m, n, k, sm, may_split=False)
            others = [config for config in linear_configs(m, k) if config != chosen]
            rows = sweep("linear", "linear", (m, n, k), [chosen, *others])
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
