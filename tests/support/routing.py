"""Ways in which tokens are routed to experts, the usual and the awkward."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import cycle

import torch
from cases import same_bits
from torch import Tensor

import nvfp4

NAN = float("nan")


@dataclass(frozen=True)
class Pattern:
    """`experts` are local, from id `offset` on, of `total` ids that `ids(self)` draws from."""

    name: str
    ids: "Callable[[Pattern], Tensor]"
    tokens: int = 37
    experts: int = 6
    top_k: int = 2
    offset: int = 0

    def __str__(self) -> str:
        return self.name

    def route(self) -> tuple[Tensor, Tensor]:
        """topk_ids int32 [M, top_k] and topk_weights [M, top_k]; NaN where the id is -1."""
        generator = torch.Generator().manual_seed(self.tokens + self.experts)
        torch.manual_seed(self.tokens + self.experts)
        ids = self.ids(self).int()
        assert ids.shape == (self.tokens, self.top_k), ids.shape
        weights = torch.randint(1, 9, ids.shape, generator=generator) / 8
        return ids, weights.masked_fill(ids == -1, NAN)


def _uniform(p: Pattern) -> Tensor:
    return torch.rand(p.tokens, p.experts).argsort(1)[:, : p.top_k] + p.offset


def _wider(p: Pattern) -> Tensor:
    """Uniform over three times the local experts, as expert parallelism slices them."""
    return torch.rand(p.tokens, 3 * p.experts).argsort(1)[:, : p.top_k]


def _skewed(p: Pattern) -> Tensor:
    odds = 1.0 / torch.arange(1, p.experts + 1) ** 2
    return torch.multinomial(odds.expand(p.tokens, -1), p.top_k)


def _all_to(expert: int) -> Callable[[Pattern], Tensor]:
    return lambda p: torch.full((p.tokens, p.top_k), expert)


def _counts(*rows: int) -> Callable[[Pattern], Tensor]:
    """Exactly so many rows for each expert, in a shuffled order of tokens."""

    def ids(p: Pattern) -> Tensor:
        spread = torch.arange(len(rows)).repeat_interleave(torch.tensor(rows))
        return spread[torch.randperm(len(spread))].view(p.tokens, p.top_k)

    return ids


def _padded(p: Pattern) -> Tensor:
    """The last third of the tokens is padding, as engines fill a captured batch."""
    ids = _uniform(p)
    ids[p.tokens * 2 // 3 :] = -1
    return ids


def _far_ids(p: Pattern) -> Tensor:
    ids = _uniform(p)
    ids[::3, 0] = 2**31 - 1
    ids[1::3, 1] = -(2**31)
    return ids


PATTERNS = [
    Pattern("uniform", _uniform),
    Pattern("skewed", _skewed, tokens=90, experts=8, top_k=3),
    Pattern("empty experts", _counts(0, 5, 0, 0, 60, 0, 1, 0), tokens=33, experts=8),
    Pattern("all to the first", _all_to(0), tokens=70),
    Pattern("all to the last", _all_to(5), tokens=70),
    Pattern("nobody", _all_to(-1), tokens=9),
    Pattern("padding of -1", _padded),
    Pattern("ids far outside", _far_ids),
    Pattern("slice, first rank", _wider, tokens=64, top_k=4),
    Pattern("slice, middle rank", _wider, tokens=64, top_k=4, offset=6),
    Pattern("slice, last rank", _wider, tokens=64, top_k=4, offset=12),
    Pattern("scale tiles full and over", _counts(128, 129, 127, 0), tokens=192, experts=4),
    Pattern("one token", _uniform, tokens=1, experts=64, top_k=8),
    Pattern("one expert", _all_to(0), tokens=5, experts=1, top_k=1),
    Pattern("top 1", _uniform, tokens=50, top_k=1),
    Pattern("top 16", _uniform, tokens=11, experts=24, top_k=16),
    Pattern("512 experts", _uniform, tokens=2, experts=512, top_k=8),
    Pattern("several chunks", _wider, tokens=70, experts=7, top_k=4, offset=7),
]


FEW = [p for p in PATTERNS if p.name in ("uniform", "empty experts", "slice, middle rank")]


def in_turn(choices: Sequence, every: Sequence[Pattern] = ()) -> list[tuple]:
    """Each pattern with one of the choices, in turn; each pattern of `every` with all of them.

    What a pattern tests does not depend on the choice, and an interpreted or emulated case takes
    seconds.
    """
    pairs = list(zip(PATTERNS, cycle(choices), strict=False))
    return [*pairs, *((p, c) for p in every for c in choices if (p, c) not in pairs)]


def exact_experts(experts: int, n: int, k: int, segments: int = 1) -> nvfp4.ExpertWeights:
    """Weights with scales of 1/2, 1 and 2 and global scales of powers of two, so that sums with
    such rows are exact in float32.
    """
    data = torch.randint(0, 256, (experts, n, k // 2), dtype=torch.uint8)
    scales = torch.tensor([0.5, 1.0, 2.0])[torch.randint(0, 3, (experts, n, k // 16))]
    swizzled = [nvfp4.swizzle_scales(s.to(torch.float8_e4m3fn)).view(torch.uint8) for s in scales]
    p = 2.0 ** -torch.randint(4, 8, (experts, segments)).float()
    return nvfp4.ExpertWeights(
        data,
        torch.stack(swizzled).view(torch.float8_e4m3fn),
        p if segments > 1 else p[:, 0],
    )


def exact_tokens(tokens: int, k: int) -> Tensor:
    """bfloat16 [tokens, k] whose blocks all hold the row's largest number, a power of two times 6:
    each row is E2M1 numbers with one scale, so that sums are exact in float32.
    """
    codes = torch.randint(-6, 7, (tokens, k)).float()
    codes.view(tokens, -1, 16)[:, :, 3] = 6.0
    codes = torch.where(codes.abs() == 5, 4.0, codes)
    return (codes * 2.0 ** torch.randint(-3, 4, (tokens, 1))).bfloat16()


def moved(value, device: str):
    """A tensor, rows or weights on the device."""
    if isinstance(value, nvfp4.ExpertRows):
        parts = (value.data, value.scales, value.row_scale, value.offsets)
        return nvfp4.ExpertRows(*(part.to(device) for part in parts))
    return value if value is None else value.to(device)


def same_rows(got: nvfp4.ExpertRows, want: nvfp4.ExpertRows) -> None:
    for g, w in zip(vars(got).values(), vars(want).values(), strict=True):
        same_bits(g, w)
