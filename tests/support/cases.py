"""Inputs that several tests share."""

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import pytest
import torch
from torch import Tensor

from nvfp4.dispatch.explain import explain


@dataclass(frozen=True)
class Shape:
    m: int
    n: int
    k: int

    def __str__(self) -> str:
        return f"{self.m}x{self.n}x{self.k}"


GEMM_SHAPES = [
    Shape(1, 8, 16),
    Shape(7, 64, 48),
    Shape(16, 200, 576),
    Shape(127, 136, 272),
    Shape(128, 128, 256),
    Shape(129, 72, 544),
    Shape(300, 130, 128),
]
"""Square and ragged: K a multiple of 16 and no more, rows around the 128-row tile, N odd in
eights.
"""


def activations(rows: int, k: int, dtype: torch.dtype = torch.bfloat16) -> Tensor:
    """Gaussian rows of very different sizes, one of zeros, one of negative zeros, with outliers."""
    x = torch.randn(rows, k) * torch.logspace(-3, 3, rows).unsqueeze(1)
    x[:, ::37] *= 20
    if rows > 2:
        x[1] = 0.0
        x[2] = -0.0
    return x.to(dtype)


def specials(k: int = 64) -> Tensor:
    """float32 rows with NaN, infinities, subnormals, the largest and the smallest numbers."""
    x = torch.randn(8, k)
    x[0, 3] = float("nan")
    x[1, 5], x[1, 9] = float("inf"), -float("inf")
    x[2, 0], x[2, 17] = float("nan"), float("inf")
    x[3] *= 1e-42
    x[4] *= 1e38
    x[5, 4], x[5, 5] = -float("nan"), -0.0
    x[6] = torch.where(torch.arange(k) % 2 == 0, 0.0, -0.0)
    x[7, :16] = 1e-30
    return x


def same_bits(got: Tensor, want: Tensor) -> None:
    """Bitwise equality; a failure names the first place."""
    assert got.shape == want.shape and got.dtype == want.dtype, (
        got.shape,
        want.shape,
        got.dtype,
        want.dtype,
    )
    view = {1: torch.uint8, 2: torch.int16, 4: torch.int32}[got.element_size()]
    different = got.cpu().contiguous().view(view) != want.cpu().contiguous().view(view)
    if different.any():
        at = tuple(different.nonzero()[0].tolist())
        raise AssertionError(
            f"{int(different.sum())} of {different.numel()} differ, first at {at}: "
            f"got {got.cpu()[at].float().item()}, want {want.cpu()[at].float().item()}"
        )


def from_numpy(array: np.ndarray) -> Tensor:
    return torch.from_numpy(np.ascontiguousarray(array))


def skip_if_it_cannot(backend: str, device: str = "cpu") -> None:
    """For tests that name a backend, or call its GEMM below the op: with its own reasons."""
    for verdict in explain("mm", device, backend).stages[0].verdicts:
        if verdict.backend == backend and verdict.reasons:
            pytest.skip(f"{backend}: {verdict}")


def every_backend(test: Callable) -> Callable:
    """Marks a test that runs, in a loop, every backend that can run here."""
    return pytest.mark.emulated(pytest.mark.interpreted(test))
