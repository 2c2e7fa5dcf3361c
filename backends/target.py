"""Where a call runs: the kind of device, and the architecture of an NVIDIA GPU."""

import functools
import re
from typing import NamedTuple

import torch

from nvfp4.backends.emulation import emulated_sm


class Target(NamedTuple):
    """A torch device type, and an NVIDIA GPU's architecture: 90 for sm_90, 0 for what is none.

    A CPU with an architecture emulates it.
    """

    device: str
    sm: int = 0

    @property
    def emulated(self) -> bool:
        return self.device == "cpu" and self.sm > 0

    def __str__(self) -> str:
        if self.emulated:
            return f"emulated sm_{self.sm}"
        return f"{self.device} sm_{self.sm}" if self.sm else self.device


def target_of(device: torch.device) -> Target:
    """The target that a torch device is, here and now: nvfp4.emulate changes what a CPU is."""
    if device.type == "cpu":
        return Target("cpu", emulated_sm())
    return _target_of(device)


@functools.cache
def _target_of(device: torch.device) -> Target:
    if device.type != "cuda" or torch.version.hip:
        return Target(device.type)
    major, minor = torch.cuda.get_device_capability(device)
    return Target("cuda", 10 * major + minor)


def sm_of(arch: str) -> int:
    """The number in the name of an architecture: 100 in "sm_100a"."""
    found = re.fullmatch(r"sm_(\d+)[a-z]?", arch)
    if not found:
        raise ValueError(f"nvfp4: an architecture is sm_90a, sm_100a or the like, got {arch!r}")
    return int(found[1])
