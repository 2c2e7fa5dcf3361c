"""Operations of every lane by itself that have the same form: a name, a type, and operands."""

from nvfp4.emulator import ptx
from nvfp4.emulator.isa.builder import Builder, Lanes
from nvfp4.emulator.isa.modifiers import Modifiers


def elementwise(
    instruction: ptx.Instruction,
    builder: Builder,
    name: str,
    bits: int,
    count: int = 2,
    immediate: int = 0,
) -> Lanes:
    """Put the operation `name` of `count` operands into the result, all of `bits` bits."""
    into, *operands = instruction.operands
    return builder.lanes(name, into, bits, operands, (bits,) * count, immediate)


def typed(instruction: ptx.Instruction) -> tuple[str, int]:
    """Give the type of an instruction that has no other modifier."""
    modifiers = Modifiers(instruction)
    letter, bits = modifiers.type()
    modifiers.done()
    return letter, bits


def is_float(instruction: ptx.Instruction) -> bool:
    return instruction.modifiers[-1].startswith(("f", "bf"))
