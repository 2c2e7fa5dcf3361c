"""tcgen05, by its first modifier (PTX ISA: TensorCore 5th Generation Family Instructions)."""

from collections.abc import Mapping

from nvfp4.emulator import ptx
from nvfp4.emulator.isa.program import Decoder, Modifiers, Operation, Program, Step
from nvfp4.emulator.tensor_cores import access as tensor_access
from nvfp4.emulator.tensor_cores import allocation as tensor_allocation
from nvfp4.emulator.tensor_cores import mma as tensor_core

_OPERATIONS: Mapping[str, Operation] = {
    **tensor_allocation.OPERATIONS,
    **tensor_core.OPERATIONS,
    **tensor_access.OPERATIONS,
}


def _decode_tcgen05(instruction: ptx.Instruction, program: Program) -> Step:
    name, *_ = instruction.modifiers
    if name not in _OPERATIONS:
        raise instruction.unsupported(f"tcgen05.{name} is not known")
    return _OPERATIONS[name](instruction, program, Modifiers(instruction, name))


DECODERS: Mapping[str, Decoder] = {"tcgen05": _decode_tcgen05}
