"""A block's experts as modules of transformers hold them: weights, biases and activation.

Such a module has all gates and ups in one parameter and all downs in another. The classes differ
in the order of their elements. Here they are brought into that of layers.MoE, and back.
"""

from inspect import signature
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from nvfp4.checkpoints.names import DOWN, GATE, UP
from nvfp4.spec.glu import GATED, RELU2, activate, glu

PROBE = torch.linspace(-24, 24, 97, dtype=torch.float32, device="cpu")
"""Values of gate and up to try an activation on; they exceed every model's limit."""

GATE_UP_STACK, UP_STACK, DOWN_STACK = "gate_up_proj", "up_proj", "down_proj"
"""The parameters of a module of experts; experts without a gate have the second, not the first."""

STACK_BIAS = "_bias"
"""The ending of the biases of such a parameter."""


class Stacks(NamedTuple):
    """A block's experts in the order of layers.MoE.

    w13 is [E, 2I, H], gate's rows first, or up's [E, I, H] where there is no gate. w2 is [E, H, I].
    The biases, w13_bias [E, 2I] or [E, I] and w2_bias [E, H], may be None.
    """

    w13: Tensor
    w2: Tensor
    w13_bias: Tensor | None
    w2_bias: Tensor | None


def has_gate(experts: Any) -> bool:
    return getattr(experts, "has_gate", True)


def first_stack(experts: Any) -> str:
    """The name of the parameter with gate and up, or with up alone."""
    return GATE_UP_STACK if has_gate(experts) else UP_STACK


def parts_in(experts: Any, leaf: str) -> tuple[str, ...]:
    """The layers of an expert that a parameter of a module of experts holds; () for others."""
    parts = {
        first_stack(experts): (GATE, UP) if has_gate(experts) else (UP,),
        DOWN_STACK: (DOWN,),
    }
    return parts.get(leaf.removesuffix(STACK_BIAS), ())


def is_transposed(experts: Any) -> bool:
    """Whether a module of experts has them for x W: [E, H, 2I] and [E, I, H]."""
    if not has_gate(experts):  # both parameters have the same sizes then
        return getattr(experts, "is_transposed", False)
    gate_up, down = experts.gate_up_proj.shape, experts.down_proj.shape
    return tuple(down) == (gate_up[0], gate_up[2] // 2, gate_up[1])


def _is_interleaved(experts: Any) -> bool:
    """Whether gate and up alternate (gpt-oss); others have all of gate first."""
    return has_gate(experts) and not getattr(experts, "is_concatenated", True)


def in_rows(experts: Any, leaf: str, tensor: Tensor) -> Tensor:
    """Bring a parameter of a module of experts into the order of layers.MoE."""
    if not leaf.endswith(STACK_BIAS) and is_transposed(experts):
        tensor = tensor.mT
    if len(parts_in(experts, leaf)) == 2 and _is_interleaved(experts):
        tensor = torch.cat([tensor[:, ::2], tensor[:, 1::2]], dim=1)
    return tensor


def as_stored(experts: Any, leaf: str, rows: Tensor) -> Tensor:
    """Bring experts from the order of layers.MoE into that of the module's parameter."""
    if len(parts_in(experts, leaf)) == 2 and _is_interleaved(experts):
        rows = torch.stack(rows.chunk(2, dim=1), dim=2).flatten(1, 2)
    if not leaf.endswith(STACK_BIAS) and is_transposed(experts):
        rows = rows.mT
    return rows.contiguous()


def stacks_of(experts: Any) -> Stacks:
    """The weights and biases of a module of experts; gpt-oss' gate and up are copied for it."""
    first = first_stack(experts)

    def read(leaf: str) -> Tensor:
        return in_rows(experts, leaf, getattr(experts, leaf).detach())

    def bias(leaf: str) -> Tensor | None:
        name = f"{leaf}{STACK_BIAS}"
        return None if getattr(experts, name, None) is None else read(name)

    return Stacks(read(first), read(DOWN_STACK), bias(first), bias(DOWN_STACK))


def is_experts(module: nn.Module | None) -> bool:
    """Whether a module holds a block's experts, of a kind that is known here.

    It has gate_up_proj [E, 2I, H] and down_proj [E, H, I], or both transposed, for x W. Where the
    class says that there is no gate, up_proj [E, I, H] takes the place of gate_up_proj. It may
    have a bias for each, gate_up_proj_bias [E, 2I] and down_proj_bias [E, H].
    """
    leaves = first_stack(module), DOWN_STACK
    stacks = [getattr(module, leaf, None) for leaf in leaves]
    if not all(isinstance(stack, nn.Parameter) and stack.dim() == 3 for stack in stacks):
        return False
    if getattr(module, "has_post_expert_norm", False):
        return False
    first, down = ((each.mT if is_transposed(module) else each).shape for each in stacks)  # type: ignore[union-attr]
    experts, hidden, intermediate = down
    rows = intermediate * (2 if has_gate(module) else 1)
    if tuple(first) != (experts, rows, hidden):
        return False
    biases = [getattr(module, f"{leaf}{STACK_BIAS}", None) for leaf in leaves]
    if not getattr(module, "has_bias", False):
        return biases == [None, None]
    need = [(experts, rows), (experts, hidden)]
    return [None if each is None else tuple(each.shape) for each in biases] == need


def is_sorted_by_caller(experts: nn.Module) -> bool:
    """Whether a module of experts takes the tokens of each expert, one after another (Llama 4).

    Others take the tokens once, and the experts chosen for each.
    """
    return len(signature(type(experts).forward).parameters) == 2


def activated(experts: Any, x: Tensor) -> Tensor:
    """Apply a module's activation to gate and up, side by side [M, 2I], or to up, to [M, I]."""
    if not has_gate(experts):
        return experts.act_fn(x)
    if not hasattr(experts, "_apply_gate"):  # transformers' modules of experts define it
        gate, up = x.chunk(2, dim=-1)
        return experts.act_fn(gate) * up
    if _is_interleaved(experts):
        x = torch.stack(x.chunk(2, dim=-1), dim=-1).flatten(-2)
    return experts._apply_gate(x)


def is_activation_known(experts: Any) -> bool:
    """Whether a module of experts computes what `activation_of` knows."""
    try:
        activation_of(experts)
    except ValueError:
        return False
    return True


def activation_of(experts: Any) -> tuple[float | None, str]:
    """Find the limit and the activation of spec/glu.py that a module of experts computes.

    They are found by trying the module out on PROBE.

    Raises:
        ValueError: the module computes another function.
    """
    if not has_gate(experts):
        if _close(activated(experts, PROBE), activate(PROBE, None, RELU2)):
            return None, RELU2
        need = f"{RELU2} of up"
    else:
        gate, up = torch.cartesian_prod(PROBE, PROBE).unbind(-1)
        found = activated(experts, torch.stack([gate, up], dim=-1)).squeeze(-1)
        limits = getattr(experts, "limit", None), getattr(experts, "swiglu_limit", None)
        for limit in (None, *limits):
            for activation in GATED:
                if _close(found, glu(gate, up, limit, activation)):
                    return limit, activation
        need = f"{' or '.join(GATED)} of the gate, times up, with or without a limit"
    raise ValueError(f"experts need {need}, got another function in {type(experts).__name__}")


def _close(a: Tensor, b: Tensor) -> bool:
    return torch.allclose(a, b, rtol=1e-4, atol=1e-5)
