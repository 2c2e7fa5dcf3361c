"""What the environment asks of every backend."""

import os

BATCH_INVARIANT = "NVFP4_BATCH_INVARIANT"
"""1: a token's output does not depend, to the bit, on how many others there are. K is then never
split, which costs time with few tokens.
"""

TUNED = "NVFP4_TUNED"
"""A file of tiles measured on this machine (backends/triton/tuned.py)."""


def asked() -> tuple[str | None, str | None]:
    """All of it: calls alike in that, too, are run alike."""
    return os.environ.get(BATCH_INVARIANT), os.environ.get(TUNED)


def may_split_k() -> bool:
    return os.environ.get(BATCH_INVARIANT, "") in ("", "0")
