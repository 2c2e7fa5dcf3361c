"""tcgen05, by its first modifier (PTX ISA: TensorCore 5th Generation Family Instructions)."""

from collections.abc import Mapping

from nvfp4.backends.cutedsl.emulator import ptx, tensor_access, tensor_allocation, tensor_core
from nvfp4.backends.cutedsl.emulator.program import Decoder, Modifiers, Operation, Program, Step

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
