"""A toy op: one class, one line that registers it, and one launcher a backend."""

import sys
from pathlib import Path
from typing import NamedTuple

sys.path.insert(0, str(Path(__file__).parents[2]))

import torch
from torch import Tensor

from nvfp4.backends.backend import Backend
from nvfp4.calls import takes
from nvfp4.dispatch import select
from nvfp4.ops.library import define


class Double(NamedTuple):
    """Compute x times a number."""

    x: Tensor
    times: int = 2
    backend: str = ""

    def outputs(self) -> Tensor:
        return torch.empty_like(self.x)

    def prepared(self, out: Tensor) -> tuple["Double", Tensor]:
        return self, out


@takes(Double.prepared)
def double(call: Double, out: Tensor) -> None:
    torch.mul(call.x, call.times, out=out)


class Toy(Backend):
    def launcher(self, op):
        return double


toy = Toy("toy", ("double",), needs=lambda problem: [], only_by_name=lambda problem: "")
select.BACKENDS = (toy,)
define(Double)

x = torch.randn(3)
op = torch.ops.nvfp4.double
assert str(op.default._schema) == 'nvfp4::double(Tensor x, int times=2, str backend="") -> Tensor'
assert torch.equal(op(x), 2 * x)
assert torch.equal(torch.compile(lambda x: op(x), fullgraph=True)(x), 2 * x)
torch.library.opcheck(op.default, (x,))
try:
    op(x, backend="triton")
except ValueError as error:
    assert "backend needs one of toy, got 'triton'" in str(error)
else:
    raise AssertionError("a backend that is not there ran the op")
