"""Tiles measured on this machine, which replace the choices of gemm/config.py.

`python -m nvfp4 tune` writes the file, NVFP4_TUNED names it. Ranks that read one file run the same
tiles. A file from another kind of GPU or from other versions of torch and Triton is not used.
"""

import functools
import json
import warnings
from pathlib import Path
from typing import Any, NamedTuple

import torch
import triton

from nvfp4.backends.environment import TUNED, tuned_file
from nvfp4.backends.triton.gemm.config import HopperConfig, MmConfig

Config = MmConfig | HopperConfig


class Pick(NamedTuple):
    """The fastest tile for up to m tokens, and the fastest that does not split K (`whole`)."""

    m: int
    fastest: Config
    whole: Config


Picks = dict[tuple[int, int], list[Pick]]
"""Picks of each weight (N, K), in the order of m."""


def machine(device: torch.device) -> dict[str, str]:
    """The machine that picks are measured on: its GPU, torch and Triton."""
    gpu = torch.cuda.get_device_name(device) if device.type == "cuda" else "none"
    return {"gpu": gpu, "torch": torch.__version__, "triton": triton.__version__}


def splits(config: Config) -> bool:
    """Whether a tile's sum over K is split among programs."""
    return config.stream_k if isinstance(config, HopperConfig) else config.splits > 1


def as_text(picks: Picks, device: torch.device) -> str:
    """The tuned file's JSON."""
    rows = [
        {"n": n, "k": k, "m": p.m, "fastest": p.fastest._asdict(), "whole": p.whole._asdict()}
        for (n, k), all_ in picks.items()
        for p in all_
    ]
    return json.dumps({"machine": machine(device), "picks": rows}, indent=1) + "\n"


def tuned_config(m: int, n: int, k: int, device: torch.device, may_split: bool) -> Config | None:
    """Return the tuned tile for m tokens of a weight [N, K], None where nothing was measured.

    ValueError: NVFP4_TUNED does not name a file of picks.
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
        need = "a file that this version's `python -m nvfp4 tune` wrote"
        raise ValueError(f"nvfp4: {TUNED} needs {need}, got {path!r}: {error!r}") from error
    here = machine(device)
    if measured != here:
        warnings.warn(f"nvfp4: {path} is not used: for {measured}, this is {here}", stacklevel=2)
        return {}
    return picks


def config_from(fields: dict[str, Any]) -> Config:
    """A tile from its fields in the file."""
    return HopperConfig(**fields) if "a_stages" in fields else MmConfig(**fields)
