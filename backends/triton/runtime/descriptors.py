"""Tensor descriptors without their addresses."""

from dataclasses import dataclass

import torch
from triton.experimental.gluon.nvidia.hopper import TensorDescriptor

from nvfp4.backends.recording import Pointer
from nvfp4.backends.triton.runtime.compat import copy_descriptor


@dataclass(frozen=True)
class Address:
    """The part of a tensor that a launch asks for; Triton would specialize a tuple by its items."""

    address: int
    dtype: torch.dtype

    def data_ptr(self) -> int:
        return self.address


class Described:
    """A tensor descriptor without its address.

    It keeps the descriptors that it made, up to MOST: weights stay at their addresses.
    """

    MOST = 1024

    def __init__(self, descriptor: TensorDescriptor) -> None:
        self.dtype = descriptor.base.dtype
        self.fields = vars(descriptor) | {"base": None}
        self.known: dict[int, TensorDescriptor] = {}

    def at(self, address: int) -> TensorDescriptor:
        """The descriptor of a tensor at this address."""
        descriptor = self.known.get(address)
        if descriptor is None:
            if len(self.known) == self.MOST:
                self.known.clear()
            descriptor = copy_descriptor(self.fields, Address(address, self.dtype))
            self.known[address] = descriptor
        return descriptor


def pointer(descriptor: TensorDescriptor) -> Pointer:
    """The descriptor as an argument that other addresses can take the place of."""
    return Pointer(descriptor.base, Described(descriptor).at)
