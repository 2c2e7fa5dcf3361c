"""Loading with checks: which tensors came, and with what dtype and shape.

vLLM copies whatever fits after a cast, and does not check that all of a quantized model came. So it
would serve a damaged checkpoint.
"""

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

from nvfp4.tensors import QuantizedTensor

QKV = {"q": 0, "k": 1, "v": 2}
"""The names in vLLM of the parts of an attention's fused projection."""


class PartLoader:
    """The weight_loader of one parameter of a linear layer.

    It checks each tensor before vLLM's own loader copies this rank's part of it, and records the
    shape of each part of a fused layer.
    """

    def __init__(
        self, load: Callable[..., None], modules: Sequence[str], name: str, *dtypes: torch.dtype
    ) -> None:
        """Make the loader of the tensors `name` of `modules`, which need one of `dtypes`."""
        self.load, self.modules, self.name, self.dtypes = load, modules, name, dtypes
        self.shapes: dict[int, torch.Size] = {}

    def __call__(self, param: Tensor, loaded_weight: Tensor, *shard: Any) -> None:
        parts = self._parts(shard[0] if shard else None)
        tensor = f"{self.modules[parts[0]]}.{self.name}"
        needs_dtype(tensor, loaded_weight, *self.dtypes)
        try:
            self.load(param, loaded_weight, *shard)
        except (AssertionError, IndexError, RuntimeError) as error:
            need = f"a shape that this layer's {list(param.shape)} is a part of"
            raise refused(tensor, need, f"shape {list(loaded_weight.shape)}") from error
        self.shapes |= dict.fromkeys(parts, loaded_weight.shape)

    def _parts(self, shard: str | int | Sequence[int] | None) -> list[int]:
        """The parts of a shard; None means all parts, as in checkpoints that are fused on disk."""
        if shard is None:
            return list(range(len(self.modules)))
        if isinstance(shard, str):
            return [QKV[shard]]
        return [shard] if isinstance(shard, int) else list(shard)

    def complete(self) -> bool:
        return len(self.shapes) == len(self.modules)

    def needs_all(self) -> None:
        """Raise ValueError unless the tensors of all parts came."""
        for part, module in enumerate(self.modules):
            if part not in self.shapes:
                need = "to be in the checkpoint"
                raise refused(f"{module}.{self.name}", need, "no such tensor")


def needs_dtype(tensor: str, loaded: Tensor, *dtypes: torch.dtype) -> None:
    if loaded.dtype not in dtypes:
        raise refused(tensor, f"dtype {' or '.join(map(_short, dtypes))}", _short(loaded.dtype))


def validated(module: str, weight: QuantizedTensor) -> QuantizedTensor:
    """Return the weight if its values are valid; else raise ValueError naming the module."""
    try:
        return weight.validate()
    except ValueError as error:
        raise ValueError(f"nvfp4: {module}: {error}") from error


def multipliers(p: Tensor, tensor_of: Callable[..., str]) -> Tensor:
    """Return global scales if all are finite and positive; tensor_of(*place) names one."""
    bad = torch.nonzero(~((p > 0) & (p < torch.inf))).tolist()
    if bad:
        place = tuple(bad[0])
        raise refused(tensor_of(*place), "a finite positive scale", p[place].item())
    return p


def refused(what: str, need: str, got: object) -> ValueError:
    return ValueError(f"nvfp4: {what} needs {need}, got {got}")


def _short(dtype: torch.dtype) -> str:
    return str(dtype).removeprefix("torch.")
