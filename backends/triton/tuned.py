"""Tiles measured on this machine, in place of those that mm_config.py chooses for all.

NVFP4_TUNED names the file, which `python -m nvfp4 tune` writes. Ranks that are given the same file
run the same tiles. What was measured on another kind of GPU, or with other versions, is not used.
"""

import functools
import json
import warnings
from pathlib import Path
from typing import Any, NamedTuple

import torch
import triton

from nvfp4.backends.environment import TUNED, tuned_file
from nvfp4.backends.triton.mm_config import HopperConfig, MmConfig

Config = MmConfig | HopperConfig


class Pick(NamedTuple):
    """For up to m tokens: the fastest tile, and the fastest that leaves a token's bits alone."""

    m: int
    fastest: Config
    whole: Config


Picks = dict[tuple[int, int], list[Pick]]
"""By a weight's (N, K), in the order of m."""


def machine(device: torch.device) -> dict[str, str]:
    """What picks are for."""
    gpu = torch.cuda.get_device_name(device) if device.type == "cuda" else "none"
    return {"gpu": gpu, "torch": torch.__version__, "triton": triton.__version__}


def splits(config: Config) -> bool:
    return config.split if isinstance(config, HopperConfig) else config.splits > 1


def as_text(picks: Picks, device: torch.device) -> str:
    rows = [
        {"n": n, "k": k, "m": p.m, "fastest": p.fastest._asdict(), "whole": p.whole._asdict()}
        for (n, k), all_ in picks.items()
        for p in all_
    ]
    return json.dumps({"machine": machine(device), "picks": rows}, indent=1) + "\n"


def tuned_config(m: int, n: int, k: int, device: torch.device, may_split: bool) -> Config | None:
    """What was fastest for so many tokens of a weight [N, K]; None where nothing was measured.

    ValueError: NVFP4_TUNED names no file of picks.
    """
    path = tuned_file()
    if not path or device.type == "meta":
        return None
    pick = next((p for p in _picks(path, device).get((n, k), ()) if p.m >= m), None)
    return pick and (pick.fastest if may_split else pick.whole)


@functools.cache
def _picks(path: str, device: torch.device) -> Picks:
    try:
        found = json.loads(Path(path).read_text())
        measured = dict(found["machine"])
        picks: Picks = {}
        for row in sorted(found["picks"], key=lambda row: row["m"]):
            pick = Pick(row["m"], config_from(row["fastest"]), config_from(row["whole"]))
            picks.setdefault((row["n"], row["k"]), []).append(pick)
    except (OSError, ValueError, KeyError, TypeError) as error:
        need = "a file that `python -m nvfp4 tune` wrote"
        raise ValueError(f"nvfp4: {TUNED} needs {need}, got {path!r}: {error!r}") from error
    here = machine(device)
    if measured != here:
        warnings.warn(f"nvfp4: {path} is not used: for {measured}, this is {here}", stacklevel=2)
        return {}
    return picks


def config_from(fields: dict[str, Any]) -> Config:
    return HopperConfig(**fields) if "a_slots" in fields else MmConfig(**fields)
