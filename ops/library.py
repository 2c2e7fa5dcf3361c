"""Registering an op from its call: the schema, the fake, and the implementation.

torch.library.define and impl cost about a microsecond a call where custom_op costs ten.
"""

import hashlib
from collections.abc import Callable
from typing import Any, Protocol, TypeVar, cast

import torch

from nvfp4.calls.call import Call, op_of, schema_of
from nvfp4.calls.checks import check_values
from nvfp4.dispatch import fill, replayed
from nvfp4.ops.gradient import refusing

_LIBRARY = torch.library.Library("nvfp4", "FRAGMENT")


class Contract(Protocol):
    """What an op is declared by: a class of calls (nvfp4.calls)."""

    def outputs(self) -> Any:
        """Check the arguments' shapes, dtypes and devices, and allocate what the op returns."""
        ...


C = TypeVar("C", bound=Contract)


def define(contract: Callable[..., C], run: Callable[[C, Any], None] | None = None) -> None:
    """Register the op of a class of calls.

    run: fills a call's outputs; by default one backend does all of it.
    """
    name, schema = op_of(contract), schema_of(contract)
    qualified = f"nvfp4::{name}"

    def fake(*args: Any, **kwargs: Any) -> Any:
        return _plain(contract(*args, **kwargs).outputs())

    def implementation(*args: Any, **kwargs: Any) -> Any:
        call = contract(*args, **kwargs)
        out = call.outputs()
        check_values(call)
        if run is None:
            fill(cast(Call[Any], call), out)
        else:
            run(call, out)
        return _plain(out)

    implementation = replayed(implementation)
    torch.library.define(qualified, schema, tags=(torch.Tag.pt2_compliant_tag,))
    torch.library.impl(qualified, ("cpu", "cuda"), implementation)
    torch.library.register_fake(qualified, fake)
    _LIBRARY.impl(name, refusing(qualified, implementation), "Autograd", with_keyset=True)
    _tag_compiled_graphs(f"{name}{schema}")


def _tag_compiled_graphs(schema: str) -> None:
    """Put an op's schema into the key by which torch finds compiled graphs on disk.

    Torch leaves it out, so a graph compiled before a parameter was renamed or moved would be loaded
    and would call the op as it was.
    """
    digest = hashlib.sha256(schema.encode()).hexdigest()[:8]
    torch.compiler.config.cache_key_tag += f" nvfp4::{digest}"


def _plain(out: Any) -> Any:
    """The tuple in a NamedTuple's place: torch compares the types of what ops return."""
    return tuple(out) if isinstance(out, tuple) else out
