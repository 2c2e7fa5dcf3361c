"""The registers that instructions read and write."""

from collections.abc import Iterator

from nvfp4.emulator.ptx.syntax import (
    Address,
    Instruction,
    Not,
    Operand,
    Pair,
    Register,
    Vector,
)

_NO_RESULT = frozenset(
    {
        "st", "red", "bra", "ret", "exit", "trap", "bar", "barrier", "nanosleep", "fence", "membar",
        "setmaxnreg", "cp", "prefetch", "griddepcontrol",
    }
)  # fmt: skip


def read_by(instruction: Instruction) -> list[Register]:
    """List the registers that an instruction reads, its predicate included."""
    operands = instruction.operands[_has_result(instruction) :]
    return [r for operand in (*operands, instruction.guard) for r in _registers(operand)]


def written_by(instruction: Instruction) -> list[Register]:
    """List the registers that an instruction writes."""
    return list(_registers(instruction.operands[0])) if _has_result(instruction) else []


def named_by(instruction: Instruction) -> list[Register]:
    """List the registers among an instruction's operands, read or written."""
    return [r for operand in instruction.operands for r in _registers(operand)]


def _registers(operand: Operand | None) -> Iterator[Register]:
    match operand:
        case Register():
            yield operand
        case Not(register):
            yield register
        case Pair(first, second):
            yield from (*_registers(first), *_registers(second))
        case Vector(items):
            for item in items:
                yield from _registers(item)
        case Address(base, _, coordinates):
            yield from (*_registers(base), *_registers(coordinates))


def _has_result(instruction: Instruction) -> bool:
    """Say whether the first operand is what the instruction writes."""
    operands = instruction.operands
    return (
        bool(operands)
        and not isinstance(operands[0], Address)
        and instruction.opcode not in _NO_RESULT
        and (instruction.opcode != "tcgen05" or instruction.modifiers[0] == "ld")
    )
