"""Launches over one set of tensors, and a single kernel run from its PTX alone."""

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from functools import lru_cache

import torch

from nvfp4.emulator.instructions import DECODERS
from nvfp4.emulator.isa.builder import build
from nvfp4.emulator.machine.cluster import Dim
from nvfp4.emulator.machine.machine import Launch, Machine
from nvfp4.emulator.machine.options import Options, Report
from nvfp4.emulator.machine.program import Program
from nvfp4.emulator.memory.global_memory import GlobalMemory
from nvfp4.emulator.ptx import Module, parse


def execute(
    ptx: str,
    kernel: str,
    grid: Dim,
    block: Dim,
    cluster: Dim = (1, 1, 1),
    dynamic_smem: int = 0,
    params: bytes = b"",
    memory: Mapping[str, torch.Tensor] | None = None,
    options: Options | None = None,
) -> Report:
    """Run one kernel of a PTX module and report what ran.

    `dynamic_smem` is in bytes, `params` holds the parameters as the kernel lays them out, and
    `memory` names every CPU tensor that the kernel may touch.
    Raises Hazard, Deadlock or UnsupportedInstruction.
    """
    session = Session(memory or {}, options or Options())
    program = program_of(ptx, kernel)
    session.run(Launch(program, grid, block, cluster, dynamic_smem, params))
    session.memory.finish()
    return session.report


class Session:
    """One call's launches, in order, over the same memory."""

    def __init__(self, memory: Mapping[str, torch.Tensor], options: Options) -> None:
        self.memory = GlobalMemory(memory, options.outputs, options.check)
        self.options = options
        self.report = Report()

    def run(self, launch: Launch) -> None:
        """Run one launch to its end."""
        with _one_thread():
            Machine(launch, self.memory, self.options, self.report).run()
        self.memory.launch_ended()
        self.report.launches += 1


@lru_cache(maxsize=64)
def parsed(text: str) -> Module:
    """Parse a PTX module, once for each text."""
    return parse(text)


@lru_cache(maxsize=64)
def program_of(text: str, kernel: str) -> Program:
    """Decode a kernel of a PTX module, once for each text and name."""
    module = parsed(text)
    return build(module.kernel(kernel), module.shared, DECODERS)


@contextmanager
def _one_thread() -> Iterator[None]:
    """Run torch on one thread: an MMA is too small for more."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(threads)
