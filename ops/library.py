"""Registering an op: one schema, one fake, one implementation that dispatches per call.

torch.library.define and impl cost about a microsecond a call where custom_op costs ten.
"""

import functools
from collections.abc import Callable
from typing import Any

import torch


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


def define(name: str, signature: str, run: Callable[..., Any], fake: Callable[..., Any]) -> None:
    """Register nvfp4::name. `run` gets real tensors and picks a backend; `fake` gives shapes
    alone.
    """
    qualified = f"nvfp4::{name}"
    torch.library.define(
        qualified, " ".join(signature.split()), tags=(torch.Tag.pt2_compliant_tag,)
    )
    torch.library.impl(qualified, ("cpu", "cuda"), _for_inference(run))
    torch.library.register_fake(qualified, fake)
