"""The bytes of memory that tensors span."""

from collections.abc import Sequence

from torch import Tensor

Extent = tuple[int, int]
"""A tensor's bytes: the address of the first, and the address after the last."""


def extent(x: Tensor) -> Extent:
    """The bytes that a tensor's elements span."""
    begin = x.data_ptr()
    if not x.numel():
        return begin, begin
    last = sum((size - 1) * stride for size, stride in zip(x.shape, x.stride(), strict=True))
    return begin, begin + (last + 1) * x.element_size()


def apart(extents: Sequence[Extent]) -> bool:
    """Whether no two extents overlap, so that an address identifies its tensor."""
    ordered = sorted(extents)
    return all(a[1] <= b[0] for a, b in zip(ordered, ordered[1:], strict=False))


def contains(outer: Tensor, inner: Tensor) -> bool:
    """Whether all bytes that `inner` spans lie within those of `outer`."""
    (begin, end), (first, last) = extent(outer), extent(inner)
    return begin <= first and last <= end


def overlap(a: Tensor, b: Tensor) -> bool:
    """Whether the bytes that two tensors span overlap."""
    return not apart([extent(a), extent(b)])
