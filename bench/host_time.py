"""python -m nvfp4.bench.host_time: CPU time of a call of the sm_100 GEMMs, up to the launch.

It needs no GPU: launches are replaced by functions that do nothing, and CPU tensors are taken for a
GPU's, whose values are not looked at. So the driver's part of a launch is not in it.
"""

import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from typing import Any
from unittest.mock import patch

import torch

import nvfp4
from nvfp4.backends.cutedsl.gemm.launch import Launch
from nvfp4.calls import checks
from nvfp4.dispatch import replay

CALLS, ROUNDS = 100, 200


@contextmanager
def fake_launches(replayed: bool) -> Iterator[None]:
    """Launch nothing within the block; with `replayed`, replay calls as on a GPU."""
    nothing = lambda *args: None  # noqa: E731 - it stands for a compiled function
    fakes: list[Any] = [
        patch.object(replay, "_launches_alone", lambda x: replayed),
        patch.object(torch.cuda, "current_device", lambda: None),
        patch.object(checks, "_readable", lambda x: False),
        patch.object(Launch, "run", nothing),
        patch.object(Launch, "bound", lambda launch: (nothing, (*launch.operands, *launch.sizes))),
    ]
    with ExitStack() as entered:
        for fake in fakes:
            entered.enter_context(fake)
        yield


def calls() -> dict[str, Callable[[], Any]]:
    """The calls that are timed."""
    m, n, k, experts = 8, 7168, 2048, 8
    a = nvfp4.quantize_dynamic(torch.randn(m, k), backend="reference")
    b = nvfp4.quantize(torch.randn(n, k), backend="reference")
    dense = a.data, b.data, a.scales, b.scales, b.global_scale, a.global_scale, None, None
    w = nvfp4.quantize_experts(torch.randn(experts, 256, k), backend="reference")
    ids = torch.randint(0, experts, (m, 2))
    rows, _ = nvfp4.moe_dispatch(torch.randn(m, k), ids, experts, backend="reference")
    grouped = rows.data, w.data, rows.scales, w.scales, w.global_scale, rows.offsets, rows.row_scale
    ops = torch.ops.nvfp4
    return {
        f"mm {m}x{n}x{k}": lambda: ops.mm(*dense, "cutedsl"),
        f"grouped_mm, {experts} experts": lambda: ops.grouped_mm(*grouped, backend="cutedsl"),
    }


def microseconds(call: Callable[[], Any]) -> float:
    """The least CPU time of a call over short rounds: other work on the machine only adds to it."""
    call()
    rounds = []
    for _ in range(ROUNDS):
        start = time.process_time()
        for _ in range(CALLS):
            call()
        rounds.append((time.process_time() - start) / CALLS * 1e6)
    return min(rounds)


def main() -> None:
    torch.set_num_threads(1)
    with torch.inference_mode():
        for name, call in calls().items():
            for how in ("planned", "replayed"):
                with fake_launches(how == "replayed"):
                    print(f"{name}, {how}: {microseconds(call):.1f} us")


if __name__ == "__main__":
    main()
