"""What an arrival at a barrier passes on to those that wait for it: sets of events.

Which events a waiting warp gets depends on the scope and the strength of both sides (PTX ISA:
Memory Consistency Model). An event is what memory/shadow.py says it is.
"""

from typing import NamedTuple


class Passed(NamedTuple):
    """The events that arrivals pass on, by what those that wait for them ask for.

    cta, cluster: what an acquire of this scope gets. Of each, the fenced ones are the generic
    writes behind a proxy fence. always: what any wait gets: which CTAs run, and the accesses to
    tensor memory that tcgen05.fence has ordered.
    """

    cta: int = 0
    cta_fenced: int = 0
    cluster: int = 0
    cluster_fenced: int = 0
    always: int = 0

    def __or__(self, other: "Passed") -> "Passed":
        return Passed(
            self.cta | other.cta,
            self.cta_fenced | other.cta_fenced,
            self.cluster | other.cluster,
            self.cluster_fenced | other.cluster_fenced,
            self.always | other.always,
        )


NOTHING = Passed()


def to_all(seen: int, fenced: int = 0, always: int = 0) -> Passed:
    """Pass the same on to acquires of every scope."""
    return Passed(seen, fenced, seen, fenced, always)
