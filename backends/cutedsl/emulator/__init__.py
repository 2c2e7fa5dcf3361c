"""An emulator of the sm_100a kernels: their PTX, run on a CPU, hazards found.

    report = load(obj, name, ptx)(*args, memory={"a": a, "out": out}, options=Options(seed=1))

It knows what PTX ISA says of the instructions and nothing of the kernels.
"""

from nvfp4.backends.cutedsl.emulator.hazards import Deadlock, Hazard, Kind, UnsupportedInstruction
from nvfp4.backends.cutedsl.emulator.launch import Emulated, execute, load
from nvfp4.backends.cutedsl.emulator.machine import Options, Report

__all__ = [
    "Deadlock",
    "Emulated",
    "Hazard",
    "Kind",
    "Options",
    "Report",
    "UnsupportedInstruction",
    "execute",
    "load",
]
