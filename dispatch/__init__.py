"""The registry of backends, and the choice among them, made per call on real tensors."""

from nvfp4.dispatch.registry import BACKENDS
from nvfp4.dispatch.replay import replayed
from nvfp4.dispatch.select import Verdict, choose, fill, fuse, verdicts

__all__ = ["BACKENDS", "Verdict", "choose", "fill", "fuse", "replayed", "verdicts"]
