"""An emulator of the sm_100a kernels: their PTX, run on a CPU, hazards found.

    report = load(obj, name, ptx)(*args, memory={"a": a, "out": out}, options=Options(seed=1))

It knows what PTX ISA says of the instructions and nothing of the kernels. From the top down:

    launch       calls of compiled functions and single kernels; cudart.c: the CUDA runtime for them
    machine      the scheduler, Options and Report; cluster, warp: what it runs
    ptx, program the text parsed, and made into a step for each instruction
    instructions every instruction by its opcode; what each does:
      moves, arithmetic, bits, floats, conversions (elementwise: what they share), special
      registers, control, accesses, matrices, mbarriers, barriers, tma (boxes), tcgen05
      (tensor_allocation, tensor_core, tensor_access; cta_groups)
    lanes        values of a warp's 32 lanes
    memory, tensor_memory        what is stored where
    tensor_map, descriptors      the public bit layouts
    shadow, hazards              who wrote and read each byte, and the faults found by that

What it does not see: ptxas and SASS, register budgets, the order of summation within an MMA, data
races within a CTA on global memory, and speed.
"""

from nvfp4.emulator.hazards import Deadlock, Hazard, Kind, UnsupportedInstruction
from nvfp4.emulator.launch.host import Emulated, execute, load
from nvfp4.emulator.machine.machine import Options, Report

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
