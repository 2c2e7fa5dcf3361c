"""What all calls have in common: the op's name and schema, and the type of its launchers."""

import functools
import re
import typing
from collections.abc import Callable, Iterator
from typing import Any, Protocol, TypeVar

import torch
from torch import Tensor

Out = TypeVar("Out")
C = TypeVar("C")


class Call(Protocol[Out]):
    """A call that a backend can be given; Out is what its launchers fill."""

    @property
    def backend(self) -> str:
        """The backend asked for; "" lets the dispatch choose."""
        ...

    def __iter__(self) -> Iterator[Any]: ...

    def prepared(self: C, out: Out) -> tuple[C, Out]:
        """The call and its outputs in the one form that launchers take: tensors of known dimensions
        with contiguous rows, packed data as bytes, scales whole.
        """
        ...


Launcher = Callable[[C, Out], None]


def takes(
    prepared: Callable[[Any, Any], tuple[C, Out]],
) -> Callable[[Launcher[C, Out]], Launcher[C, Out]]:
    """Declare a launcher: it takes what `prepared`, a call's method, returns.

    mypy checks the decorated function's arguments against it.
    """

    def declared(launcher: Launcher[C, Out]) -> Launcher[C, Out]:
        launcher.takes = prepared  # type: ignore[attr-defined]
        return launcher

    return declared


_TYPES = {
    Tensor: "Tensor",
    Tensor | None: "Tensor?",
    torch.dtype | None: "ScalarType?",
    float | None: "float?",
    float: "float",
    int: "int",
    str: "str",
}


@functools.cache
def op_of(kind: Any) -> str:
    """The op that a class of calls is for: "glu_quantize" of GluQuantize."""
    return re.sub(r"(?<!^)(?=[A-Z])", "_", kind.__name__).lower()


def schema_of(kind: Any) -> str:
    """The op's schema: the class's fields, and the annotation of what `outputs` returns."""
    types, defaults = typing.get_type_hints(kind), kind._field_defaults
    arguments = ", ".join(
        f"{_TYPES[types[name]]} {name}" + (_default(defaults[name]) if name in defaults else "")
        for name in kind._fields
    )
    returns = typing.get_type_hints(kind.outputs)["return"]
    if hasattr(returns, "_fields"):
        hints = typing.get_type_hints(returns)
        return f"({arguments}) -> ({', '.join(f'{_TYPES[hints[f]]} {f}' for f in returns._fields)})"
    return f"({arguments}) -> {_TYPES[returns]}"


def _default(value: object) -> str:
    return f'="{value}"' if isinstance(value, str) else f"={value}"
