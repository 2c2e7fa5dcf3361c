"""The jobs that are timed: their bytes and flops, their peers, and the check of the result."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from itertools import product

import torch
import torch.nn.functional as F
import triton
import triton.language as tl
from torch import Tensor

import nvfp4
from nvfp4.bench import humming
from nvfp4.spec.scale_rules import AMAX_OVER_SIX
from nvfp4.tuning.sweep import largest_column_error
from nvfp4.tuning.timing import Call

OPS = torch.ops.nvfp4


@triton.jit
def _nothing(x, y, z, n, BLOCK: tl.constexpr):
    pass


COLD_BYTES = 160 << 20
"""The least bytes of all copies of the data together, far above an H200's 60 MB of L2."""


@dataclass(frozen=True)
class Case:
    """One op at one shape.

    `variants` holds "nvfp4" and the peers, with calls over the same copies of the data.
    """

    op: str
    shape: str
    bytes_moved: int
    flops: int
    variants: Mapping[str, Sequence[Call]]
    check: Callable[[], None]


def _copies(bytes_each: int, device: str) -> int:
    return max(2, min(64, COLD_BYTES // bytes_each)) if device == "cuda" else 2


def poison(device: str, *nbytes: int) -> None:
    """Leave NaN bytes in the memory that the allocator hands out next."""
    for poisoned in [torch.full((n,), 0x7F, dtype=torch.uint8, device=device) for n in nbytes]:
        del poisoned


def _assert_same(op: str, got: Sequence[Tensor], want: Sequence[Tensor]) -> None:
    for g, w in zip(got, want, strict=True):
        g, w = g.view(torch.uint8), w.view(torch.uint8)
        if not torch.equal(g, w):
            raise AssertionError(f"{op}: {int((g != w).sum())} bytes differ from the reference")


def bare_launch(device: str) -> Call:
    """The launch of an empty Triton kernel with three tensors, for comparison."""
    x, y, z = (torch.empty(16, device=device) for _ in range(3))
    return lambda: _nothing[(1,)](x, y, z, 16, BLOCK=16)


def quantizer(op: str, rows: int, k: int, device: str) -> Case:
    """Make the case of a memory-bound op on [rows, k] bf16, checked bit for bit.

    op: its name, and " by RULE" where its scale rule is not the default.
    """
    name, _, given = op.partition(" by ")
    rule = given or AMAX_OVER_SIX
    copies = _copies(rows * k * 2, device)
    width = 2 * k if op == "silu_mul_quantize" else k
    xs = [torch.randn(rows, width, device=device, dtype=torch.bfloat16) for _ in range(copies)]
    p = nvfp4.global_scale(xs[0], rule)
    quantized = [OPS.quantize(x, p) for x in xs] if op == "dequantize" else []
    packed_bytes = rows * k // 2 + rows * k // 16

    def run(index: int, backend: str = "") -> tuple[Tensor, ...]:
        if name == "quantize":
            return OPS.quantize(xs[index], p, scale_rule=rule, backend=backend)
        if name == "quantize_dynamic":
            return OPS.quantize_dynamic(xs[index], scale_rule=rule, backend=backend)
        if op == "silu_mul_quantize":
            return OPS.silu_mul_quantize(xs[index], p, backend=backend)
        return (OPS.dequantize(*quantized[index], p, backend=backend),)

    def check() -> None:
        for index in range(copies):
            poison(device, rows * k // 2, packed_bytes, rows * k * 2)
            _assert_same(op, run(index), run(index, "reference"))

    calls = [partial(run, index) for index in range(copies)]
    return Case(op, f"{rows}x{k}", rows * width * 2 + packed_bytes, 0, {"nvfp4": calls}, check)


def linear(m: int, n: int, k: int, device: str) -> Case:
    """Make the case of nvfp4::linear in W4A4, quantization of the activations included.

    Its peers are bf16, dequantize + bf16, our own W4A16 ("weight-only"), and humming where it is
    installed.
    """
    copies = _copies(n * k // 2, device)
    floats = [torch.randn(n, k, device=device, dtype=torch.bfloat16) for _ in range(copies)]
    weights = [nvfp4.quantize_weight(w) for w in floats]
    x = torch.randn(m, k, device=device, dtype=torch.bfloat16)

    def run(index: int, activation: str = "nvfp4", backend: str = "") -> Tensor:
        w = weights[index]
        args = (x, w.data, w.scales, w.global_scale)
        return OPS.linear(*args, backend=backend, activation=activation)

    def check() -> None:
        for index, activation in product(range(min(copies, 3)), ("nvfp4", "bf16")):
            poison(device, m * n * 2)
            got, want = run(index, activation), run(index, activation, "reference")
            error = largest_column_error(got, want)
            if not error <= 2**-7:  # one step of bf16, to which both results are rounded
                raise AssertionError(
                    f"linear {m}x{n}x{k} ({activation}): relative error {error:.1e} against the "
                    "reference"
                )

    def dequantize_and_multiply(w: nvfp4.QuantizedTensor) -> Tensor:
        return F.linear(x, w.dequantize())

    variants: dict[str, Sequence[Call]] = {
        "nvfp4": [partial(run, index) for index in range(copies)],
        "bf16": [partial(F.linear, x, w) for w in floats],
        "dequantize + bf16": [partial(dequantize_and_multiply, w) for w in weights],
        "weight-only": [partial(run, index, "bf16") for index in range(copies)],
    }
    if humming.available(device):
        variants["humming"] = humming.linear(x, weights)
    moved = n * k // 2 + n * k // 16 + m * k * 2 + m * n * 2
    return Case("linear", f"{m}x{n}x{k}", moved, 2 * m * n * k, variants, check)


def copy(device: str) -> Case:
    """Make the ceiling of memory-bound ops: a copy, with bytes read and bytes written."""
    size = (256 << 20) if device == "cuda" else (32 << 20)
    source, target = (
        torch.empty(size, dtype=torch.uint8, device=device).random_() for _ in range(2)
    )
    words = source.view(torch.int32), target.view(torch.int32)
    # It is an elementwise kernel: a copy node in a CUDA graph is slower.
    calls = [lambda: torch.bitwise_not(words[0], out=words[1])]
    return Case("copy", f"{size >> 20} MiB", 2 * size, 0, {"ceiling": calls}, lambda: None)


def matmul(device: str) -> Case:
    """Make the ceiling of GEMMs: a large bf16 product by torch."""
    size = 8192 if device == "cuda" else 512
    a, b = (torch.randn(size, size, device=device, dtype=torch.bfloat16) for _ in range(2))
    calls = [lambda: a @ b.T]
    return Case(
        "matmul", f"{size}^3", 3 * 2 * size * size, 2 * size**3, {"ceiling": calls}, lambda: None
    )
