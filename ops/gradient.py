"""A gradient that an op does not have is an error, at backward, and never a silent zero.

The ops have no backward yet. A graph may still be built through them, since nobody may ask for its
gradient; who does gets an error that names the op.
"""

from collections.abc import Callable
from typing import Any

import torch
from torch import _C, Tensor

Run = Callable[..., Any]

BACKWARD = "nvfp4_gradient::refuse"
"""The op that stands for a backward that there is none of. A compiled graph holds it where eager
mode would call it, so that compiling a model for inference does not raise.
"""


def _refuse(grad: Tensor, size: list[int], op: str) -> Tensor:
    raise _refusal(op)


def _refusal(op: str) -> RuntimeError:
    return RuntimeError(
        f"{op} has no gradient: run it under torch.no_grad(), or detach its inputs, or leave the "
        "layer in floats where you train through it"
    )


def _refuse_fake(grad: Tensor, size: list[int], op: str) -> Tensor:
    return grad.new_empty(size)


torch.library.define(BACKWARD, "(Tensor grad, SymInt[] size, str op) -> Tensor")
torch.library.impl(BACKWARD, ("cpu", "cuda"), _refuse)
torch.library.register_fake(BACKWARD, _refuse_fake)

_AFTER_AUTOGRAD: int = _C._after_autograd_keyset.raw_repr()
_KERNELS_ALONE = frozenset(
    _C.DispatchKeySet(key).raw_repr() for key in (_C.DispatchKey.CPU, _C.DispatchKey.CUDA)
)
"""What a call goes through after autograd where nothing watches it: no mode, no fake tensor, no
transform of torch.func.
"""


def refusing(op: str, run: Run) -> Run:
    """The autograd kernel of `op`, whose implementation is `run`.

    Where nothing needs a gradient it calls `run` at once: a second way through the dispatcher would
    cost some microseconds a call.
    """
    overload = getattr(torch.ops.nvfp4, op.removeprefix("nvfp4::")).default

    class Refused(torch.autograd.Function):
        @staticmethod
        def forward(ctx: Any, keyset: Any, kwargs: dict[str, Any], *args: Any) -> Any:
            ctx.sizes = [x.shape if isinstance(x, Tensor) else None for x in args]
            with _C._AutoDispatchBelowAutograd():
                return overload.redispatch(keyset & _C._after_autograd_keyset, *args, **kwargs)

        @staticmethod
        def backward(ctx: Any, *grads: Tensor | None) -> Any:
            grad = next(g for g in grads if g is not None)
            needed = zip(ctx.sizes, ctx.needs_input_grad[2:], strict=True)
            refused = (
                torch.ops.nvfp4_gradient.refuse(grad, size, op) if needs else None
                for size, needs in needed
            )
            return None, None, *refused

    def call(keyset: Any, *args: Any, **kwargs: Any) -> Any:
        if torch.is_grad_enabled():
            if _C._any_requires_grad(*args, **kwargs):
                if _C._are_functorch_transforms_active():  # torch.func.grad asks for it now
                    raise _refusal(op)
                return Refused.apply(keyset, kwargs, *args)
        elif keyset.raw_repr() & _AFTER_AUTOGRAD in _KERNELS_ALONE:
            return run(*args, **kwargs)
        with _C._AutoDispatchBelowAutograd():
            return overload.redispatch(keyset & _C._after_autograd_keyset, *args, **kwargs)

    return call
