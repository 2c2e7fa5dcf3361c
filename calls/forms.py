"""The forms in which launchers take tensors."""

from typing import overload

from torch import Tensor


def matrix(x: Tensor) -> Tensor:
    """x [..., C] as [rows, C] with contiguous rows; a copy only if strides force it."""
    if x.dim() != 2:
        x = x.unsqueeze(0) if x.dim() < 2 else x.flatten(0, -2)
    return x if x.stride(1) == 1 else x.contiguous()


@overload
def vector(p: Tensor) -> Tensor: ...
@overload
def vector(p: None) -> None: ...
def vector(p: Tensor | None) -> Tensor | None:
    """A scale [] or [S] as contiguous [S]; None for None."""
    if p is None or (p.dim() == 1 and p.is_contiguous()):
        return p
    return p.reshape(-1).contiguous()


@overload
def contiguous(x: Tensor) -> Tensor: ...
@overload
def contiguous(x: None) -> None: ...
def contiguous(x: Tensor | None) -> Tensor | None:
    """x with all its elements in order; None for None."""
    return None if x is None else x.contiguous()
