"""An emulator of GPU kernels: it runs their PTX on a CPU and looks for hazards.

    report = load(obj, name, ptx)(*args, memory={"a": a, "out": out}, options=Options(seed=1))

It knows the instructions by PTX ISA, and nothing of the kernels or of the rest of the package. Each
of its rooms imports only rooms that stand below it here:

    launch        calls of compiled functions and of single kernels, over cudart.c
    instructions  the table of all instructions by opcode
    tensor_cores  MMAs of warps (mma.sync), of warpgroups (wgmma), and tcgen05
    tma           tensor maps, and bulk copies by them
    isa           the other instructions, and how each becomes a step of a program
    machine       warps, CTAs, clusters, barriers, and the scheduler with its options
    engine        a warp's registers, and the C interpreter of what touches nothing else
    memory        global, shared and tensor memory, and the shadow: who wrote and read each byte
    ptx           the parser, and PTX as values
    lanes         values in the 32 lanes of a warp
    hazards       the faults and how they are reported
    c_library     C sources, compiled by the system's compiler and kept

It does not see ptxas and SASS, register budgets, the order of summation within an MMA, data races
within a CTA on global memory, and speed.
"""

from nvfp4.emulator.c_library import c_compiler
from nvfp4.emulator.hazards import Deadlock, Hazard, Kind, UnsupportedInstruction
from nvfp4.emulator.launch.host import Emulated, load
from nvfp4.emulator.launch.session import execute
from nvfp4.emulator.machine.options import Options, Report
from nvfp4.emulator.tma.tensor_map import encode as encode_tensor_map

__all__ = [
    "Deadlock",
    "Emulated",
    "Hazard",
    "Kind",
    "Options",
    "Report",
    "UnsupportedInstruction",
    "c_compiler",
    "encode_tensor_map",
    "execute",
    "load",
]
