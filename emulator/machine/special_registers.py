"""Special registers (PTX ISA: Special Registers).

Only the clocks change while a warp runs; mov reads them.
"""

from typing import Any

import numpy as np

from nvfp4.emulator.lanes import ALL, LANES
from nvfp4.emulator.memory.addresses import DYNAMIC_SHARED_BASE

CLOCKS = ("%clock", "%clock64", "%globaltimer")
_TRIPLES = (
    "%tid", "%ntid", "%ctaid", "%nctaid", "%cluster_ctaid", "%cluster_nctaid", "%clusterid",
    "%nclusterid",
)  # fmt: skip
_SCALARS = (
    "%laneid", "%warpid", "%nwarpid", "%smid", "%nsmid", "%cluster_ctarank", "%cluster_nctarank",
    "%is_explicit_cluster", "%dynamic_smem_size", "%total_smem_size",
)  # fmt: skip


def is_special(name: str) -> bool:
    base, _, axis = name.partition(".")
    return base in _TRIPLES and axis in ("x", "y", "z") or name in (*_SCALARS, *CLOCKS)


def value(name: str, machine: Any, cta: Any, warp: int) -> Any:
    """Give the value of a special register in the lanes of a CTA's warp."""
    launch = machine.launch
    base, _, axis = name.partition(".")
    if base == "%tid":
        x, y, _ = launch.block
        thread = np.arange(LANES) + warp * LANES
        along = (thread % x, thread // x % y, thread // (x * y))["xyz".index(axis)]
        return int(along[0]) if (along == along[0]).all() else along.astype(np.uint32)
    if base == "%laneid":
        return np.arange(LANES, dtype=np.uint32)
    in_cluster = list(zip(cta.index, launch.cluster, strict=True))
    triples: dict[str, Any] = {
        "%ntid": launch.block,
        "%ctaid": cta.index,
        "%nctaid": launch.grid,
        "%cluster_ctaid": [i % c for i, c in in_cluster],
        "%cluster_nctaid": launch.cluster,
        "%clusterid": [i // c for i, c in in_cluster],
        "%nclusterid": [n // c for n, c in zip(launch.grid, launch.cluster, strict=True)],
    }
    if base in triples:
        return triples[base]["xyz".index(axis)]
    threads = launch.block[0] * launch.block[1] * launch.block[2]
    return {
        "%cluster_ctarank": cta.rank,
        "%cluster_nctarank": launch.cluster[0] * launch.cluster[1] * launch.cluster[2],
        "%warpid": warp,
        "%nwarpid": -(-threads // LANES),
        "%smid": cta.number % machine.options.multiprocessors,
        "%nsmid": machine.options.multiprocessors,
        "%is_explicit_cluster": ALL,
        "%dynamic_smem_size": launch.dynamic_shared,
        "%total_smem_size": machine.shared_size - DYNAMIC_SHARED_BASE + launch.dynamic_shared,
    }[name]
