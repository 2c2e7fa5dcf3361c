"""The tcgen05 instructions (PTX ISA: TensorCore 5th Generation Family Instructions)."""

from collections.abc import Mapping

from nvfp4.emulator import ptx
from nvfp4.emulator.isa.builder import Builder, Decoder, Operation
from nvfp4.emulator.isa.modifiers import Modifiers
from nvfp4.emulator.machine.program import Step
from nvfp4.emulator.tensor_cores import access, allocation, commit, copy, half_mma, mma

_OPERATIONS: Mapping[str, Operation] = {
    **allocation.OPERATIONS,
    **copy.OPERATIONS,
    **mma.OPERATIONS,
    **commit.OPERATIONS,
    **access.OPERATIONS,
}


def _decode_tcgen05(instruction: ptx.Instruction, builder: Builder) -> Step:
    name, *others = instruction.modifiers
    if name == "mma" and (kind := next((o for o in others if o in half_mma.OPERATIONS), "")):
        return half_mma.OPERATIONS[kind](instruction, builder, Modifiers(instruction, name))
    if name not in _OPERATIONS:
        raise instruction.unsupported(f"tcgen05.{name} is not known")
    return _OPERATIONS[name](instruction, builder, Modifiers(instruction, name))


DECODERS: Mapping[str, Decoder] = {"tcgen05": _decode_tcgen05}
