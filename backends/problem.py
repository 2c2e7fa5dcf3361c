"""What a backend is asked before a call: whether it can run it."""

from typing import NamedTuple

from nvfp4.backends.target import Target


class Problem(NamedTuple):
    """The facts that decide who can run a call.

    There are no others in it, such as the number of tokens: a choice is cached for each problem.
    """

    op: str
    target: Target
    intermediate: int = 0
    """Columns of an MLP's first layer that share a factor: all I of gate, or a segment; else 0."""
    activation: str = ""
    """What follows the first layer (spec/glu.py), if the op has it."""
    bias: bool = False
    """Whether the first layer adds a bias."""
