"""Registering an op: one schema, one fake, one implementation that dispatches per call.

torch.library.define and impl cost about a microsecond a call where custom_op costs ten.
"""

from collections.abc import Callable
from typing import Any

import torch

from nvfp4.dispatch import replayed
from nvfp4.ops.gradient import refusing

_LIBRARY = torch.library.Library("nvfp4", "FRAGMENT")


def define(name: str, signature: str, outputs: Callable[..., Any], run: Callable[..., Any]) -> None:
    """Register nvfp4::name.

    `outputs` checks the arguments and allocates what the op returns: it is the op's fake, and the
    first thing `run` calls, so the two cannot disagree. `run` fills the outputs by a backend.
    """
    qualified = f"nvfp4::{name}"
    schema = " ".join(signature.split())
    torch.library.define(qualified, schema, tags=(torch.Tag.pt2_compliant_tag,))
    implementation = replayed(run)
    torch.library.impl(qualified, ("cpu", "cuda"), implementation)
    torch.library.register_fake(qualified, outputs)
    _LIBRARY.impl(name, refusing(qualified, implementation), "Autograd", with_keyset=True)
