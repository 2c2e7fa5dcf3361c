"""The names of a language model's layers: experts, their parts, and layers that engines fuse."""

import re
from collections.abc import Iterable
from fnmatch import fnmatchcase
from typing import NamedTuple

WEIGHT = ".weight"

GATE, UP, DOWN = "gate_proj", "up_proj", "down_proj"
EXPERT_PARTS = {GATE: GATE, UP: UP, DOWN: DOWN, "w1": GATE, "w3": UP, "w2": DOWN}
"""An expert's linear layers; Mixtral calls them w1, w3 and w2."""

SIBLINGS = (
    ("q_proj", "k_proj", "v_proj"),
    ("query", "key", "value"),
    ("wq", "wk", "wv"),
    (GATE, UP),
    ("w1", "w3"),
    ("q_a_proj", "kv_a_proj_with_mqa"),
    ("wq_a", "wkv", "wgate"),
    ("in_proj_qkv", "in_proj_z"),
    ("in_proj_b", "in_proj_a"),
)
"""Layers with one input that engines fuse, as far as a block has them."""

ROUTERS = ("gate", "router", "shared_expert_gate")
"""Layers that choose experts or weigh a shared one; they are small and stay in floats.

Some models have the linear layer within: router.proj, router.classifier, gate.wg.
"""
SELECTORS = ("weights_proj", "compressor")
"""Layers that choose the tokens to attend to, or what is kept of them; they stay in floats too."""

_EXPERT = re.compile(r"(?P<experts>.*\.experts)\.(?P<expert>\d+)\.(?P<part>\w+)")


class Expert(NamedTuple):
    """A linear layer of an expert: the module of all experts, the expert's index, the part."""

    experts: str
    expert: int
    part: str


def expert_of(module: str) -> Expert | None:
    """Split a.experts.3.gate_proj into (a.experts, 3, gate_proj); None for other layers."""
    found = _EXPERT.fullmatch(module)
    if found is None or found["part"] not in EXPERT_PARTS:
        return None
    return Expert(found["experts"], int(found["expert"]), EXPERT_PARTS[found["part"]])


def siblings_of(module: str) -> tuple[str, ...]:
    """The names of the layers that engines fuse with this one, in order, with its own."""
    parent, _, leaf = module.rpartition(".")
    for group in SIBLINGS:
        if leaf in group:
            return tuple(f"{parent}.{each}" if parent else each for each in group)
    return (module,)


def is_router(module: str) -> bool:
    return not set(ROUTERS).isdisjoint(module.split("."))


def is_selector(module: str) -> bool:
    return not set(SELECTORS).isdisjoint(module.split("."))


def matches(pattern: str, module: str) -> bool:
    """Whether a pattern matches a module's name.

    A pattern is a wildcard for the whole name, or whole parts of it between dots, such as "lm_head"
    or "mlp.gate".
    """
    return fnmatchcase(module, pattern) or f".{pattern.strip('.')}." in f".{module}."


class Names:
    """A set of modules' names, given as names and patterns in the language of a format.

    ModelOpt's language is that of `matches`. In compressed-tensors' language a pattern is a whole
    name, or "re:" and a regular expression of its beginning. Names are looked up at once, because
    a mixed checkpoint lists each of its 60000 experts' layers.
    """

    def __init__(self, patterns: Iterable[str], in_parts: bool) -> None:
        self._in_parts = in_parts
        self._names: set[str] = set()
        self._patterns: list[str] = []
        for pattern in patterns:
            if in_parts:
                special = any(each in pattern for each in "*?[")
            else:
                special = pattern.startswith("re:")
            if special:
                self._patterns.append(pattern.removeprefix("" if in_parts else "re:"))
            else:
                self._names.add(pattern.strip(".") if in_parts else pattern)

    def __contains__(self, module: str) -> bool:
        if module in self._names:
            return True
        if not self._in_parts:
            return any(re.match(pattern, module) for pattern in self._patterns)
        parts = module.split(".")
        ends = range(1, len(parts) + 1)
        inner = (".".join(parts[i:j]) for j in ends for i in range(j))
        return any(each in self._names for each in inner) or any(
            matches(pattern, module) for pattern in self._patterns
        )


def in_order(name: str) -> list[tuple[bool, int, str]]:
    """A sorting key that puts layer 2 before layer 10."""
    parts = re.split(r"(\d+)", name)
    return [(part.isdigit(), int(part) if part.isdigit() else 0, part) for part in parts]
