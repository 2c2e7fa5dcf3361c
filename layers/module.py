"""The base of the layers: packed tensors that survive casts, copies and pickling."""

from typing import Any

import torch
from torch import Tensor, nn
from torch.func import functional_call

FLOAT8 = (torch.float8_e4m3fn,)


class PackedModule(nn.Module):
    """A module whose tensors are buffers, some of them float8 block scales.

    A cast (.to(torch.float16), .half()) leaves them as they are. A scale in another dtype would be
    another number, and the output has the input's dtype. Moving to another device moves them all.
    """

    def __init__(self, backend: str = "") -> None:
        super().__init__()
        self.backend = backend

    def _register(self, **buffers: Tensor | None) -> None:
        for name, tensor in buffers.items():
            self.register_buffer(name, tensor)

    def _check(self, *inputs: Tensor) -> None:
        """Run the op on meta tensors, so that bad tensors are refused now and not at a call."""
        on_meta = {name: buffer.to("meta") for name, buffer in self.named_buffers()}
        functional_call(self, on_meta, tuple(x.to("meta") for x in inputs))

    def _apply(self, fn, recurse: bool = True):
        def moved_only(tensor: Tensor) -> Tensor:
            moved = fn(tensor)
            return moved if moved.dtype == tensor.dtype else tensor.to(moved.device)

        return super()._apply(moved_only, recurse)

    # Pickle cannot read a float8 tensor back, though torch.save can. So they travel as bytes.

    def __getstate__(self) -> dict[str, Any]:
        packed = {
            name: tensor
            for name, tensor in self._buffers.items()
            if tensor is not None and tensor.dtype in FLOAT8
        }
        as_bytes = {name: tensor.view(torch.uint8) for name, tensor in packed.items()}
        dtypes = {name: tensor.dtype for name, tensor in packed.items()}
        return self.__dict__ | {"_buffers": self._buffers | as_bytes, "_packed": dtypes}

    def __setstate__(self, state: dict[str, Any]) -> None:
        packed = state.pop("_packed")
        super().__setstate__(state)
        for name, dtype in packed.items():
            setattr(self, name, getattr(self, name).view(dtype))
