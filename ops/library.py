"""Registering an op: one schema, one fake, one implementation that dispatches per call.

torch.library.define and impl cost about a microsecond a call where custom_op costs ten.
"""

import functools
from collections.abc import Callable
from typing import Any

import torch

from nvfp4.dispatch import replayed


def _for_inference(run: Callable[..., Any]) -> Callable[..., Any]:
    """`run` without gradients: one through a rounding would be wrong, and autograd must not invent
    it.
    """

    @functools.wraps(run)
    def call(*args: Any, **kwargs: Any) -> Any:
        if not torch.is_grad_enabled():
            return run(*args, **kwargs)
        with torch.no_grad():
            return run(*args, **kwargs)

    return call


def define(name: str, signature: str, outputs: Callable[..., Any], run: Callable[..., Any]) -> None:
    """Register nvfp4::name.

    `outputs` checks the arguments and allocates what the op returns: it is the op's fake, and the
    first thing `run` calls, so the two cannot disagree. `run` fills the outputs by a backend.
    """
    qualified = f"nvfp4::{name}"
    schema = " ".join(signature.split())
    torch.library.define(qualified, schema, tags=(torch.Tag.pt2_compliant_tag,))
    torch.library.impl(qualified, ("cpu", "cuda"), replayed(_for_inference(run)))
    torch.library.register_fake(qualified, outputs)
