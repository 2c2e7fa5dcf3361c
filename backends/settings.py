"""What the environment asks of every backend."""

import os

BATCH_INVARIANT = "NVFP4_BATCH_INVARIANT"
"""1: a token's output does not depend, to the bit, on how many others there are. K is then never
split, which costs time with few tokens.
"""


def may_split_k() -> bool:
    return os.environ.get(BATCH_INVARIANT, "") in ("", "0")
