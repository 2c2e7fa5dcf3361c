"""The registers that instructions read and write, and those that live within one basic block."""

from collections.abc import Iterator

from nvfp4.emulator.ptx.syntax import (
    Address,
    Instruction,
    Kernel,
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
        "brx",
    }
)  # fmt: skip
_MAY_WAIT = frozenset(
    {
        "mbarrier", "bar", "barrier", "shfl", "vote", "elect", "redux", "activemask", "tcgen05",
        "setmaxnreg", "cp", "nanosleep", "griddepcontrol", "bra", "ret", "exit", "stmatrix",
        "ldmatrix", "mma", "wgmma", "brx",
    }
)  # fmt: skip


def read_by(instruction: Instruction) -> list[Register]:
    """List the registers that an instruction reads, its predicate included."""
    accumulates = instruction.opcode == "wgmma"  # and so reads what it writes
    operands = instruction.operands[_has_result(instruction) and not accumulates :]
    return [r for operand in (*operands, instruction.guard) for r in _registers(operand)]


def written_by(instruction: Instruction) -> list[Register]:
    """List the registers that an instruction writes."""
    return list(_registers(instruction.operands[0])) if _has_result(instruction) else []


def named_by(instruction: Instruction) -> list[Register]:
    """List the registers among an instruction's operands, read or written."""
    return [r for operand in instruction.operands for r in _registers(operand)]


def block_locals(kernel: Kernel) -> frozenset[str]:
    """Name the registers that every basic block writes before it reads them.

    Lanes that do not run need not keep their values of these registers. So a value that is equal in
    all running lanes can be one number. A block also ends where a warp may wait, because other
    lanes run then.
    """
    targets = set(kernel.labels.values())
    written: set[str] = set()
    carried: set[str] = set()
    everything: set[str] = set()
    for index, instruction in enumerate(kernel.instructions):
        if index in targets:
            written = set()
        results = {r.name for r in written_by(instruction)}
        sources = {r.name for r in read_by(instruction)}
        if instruction.guard is not None:  # lanes without the predicate keep their old value
            carried |= results
        carried |= sources - written
        everything |= sources | results
        written |= results
        if instruction.opcode in _MAY_WAIT:
            written = set()
    return frozenset(everything - carried)


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
