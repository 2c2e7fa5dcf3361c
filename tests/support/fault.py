"""A fault that the emulator looks for: a small kernel that is right, and an edit of it that brings
the fault in.
"""

from dataclasses import dataclass, field
from typing import Any

from nvfp4.emulator import Kind


@dataclass(frozen=True)
class Fault:
    """`old`, in a kernel that is right, becomes `new`: a hazard of this kind, which says `says` and
    names the line of `at`.
    """

    id: str
    kind: Kind
    body: str
    old: str
    new: str
    says: str = ""
    at: str = ""
    options: dict[str, Any] = field(default_factory=dict)
    sometimes: bool = False  # it shows only if one CTA comes before the other

    @property
    def edited(self) -> str:
        assert self.body.count(self.old) == 1, (self.id, self.body.count(self.old))
        return self.body.replace(self.old, self.new)


TWO = {"grid": (2, 1, 1)}
PAIR = {"grid": (2, 1, 1), "cluster": (2, 1, 1)}
WARPS = {"block": 128}
