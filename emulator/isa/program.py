"""A kernel made runnable: one closure for each instruction, over numbered register slots.

Constants, special registers and the addresses of variables have slots like registers do, filled
when a warp starts; so an instruction's closure takes every source from a slot.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any

from nvfp4.emulator import ptx
from nvfp4.emulator.hazards import Unsupported
from nvfp4.emulator.lanes import ALL
from nvfp4.emulator.machine.special import is_special

if TYPE_CHECKING:
    from nvfp4.emulator.machine.warp import Warp

Step = Callable[["Warp"], int | None]
"""Runs an instruction. None: on to the next one; >= 0: jump there; < 0: one of these."""
YIELD = -1  # on to the next one, but let other warps run first
BLOCKED = -2  # not done: runs again when the warp is woken
DIVERGED = -3  # the warp has set its own pc
ENDED = -4  # the lanes that ran this have exited

Decoder = Callable[[ptx.Instruction, "Program"], Step]
"""Makes an instruction's step."""
Operation = Callable[[ptx.Instruction, "Program", "Modifiers"], Step]
"""The same where the first modifiers have been taken."""


class Modifiers:
    """An instruction's modifiers, taken one by one: one that nobody takes is an error."""

    def __init__(self, instruction: ptx.Instruction, *expected: str) -> None:
        self._instruction = instruction
        self._left = list(instruction.modifiers)
        for modifier in expected:
            if not self.take(modifier):
                raise instruction.unsupported(f"only with .{modifier}")

    def take(self, *names: str) -> str:
        """The first modifier that is one of these names; "" if there is none."""
        for modifier in self._left:
            if modifier in names:
                self._left.remove(modifier)
                return modifier
        return ""

    def need(self, *names: str) -> str:
        taken = self.take(*names)
        if not taken:
            raise self._instruction.unsupported(f"none of .{', .'.join(names)}")
        return taken

    def type(self) -> tuple[str, int]:
        """The last modifier as a type: its letter (b, u, s, f) or name, and its bits."""
        name = self._left.pop() if self._left else ""
        if name == "pred":
            return "pred", 1
        if name[:1] not in tuple("busf") or not name[1:].isdigit():
            raise self._instruction.unsupported(f"the type .{name} is not known")
        return name[0], int(name[1:])

    def done(self) -> None:
        if self._left:
            raise self._instruction.unsupported(f"the modifier .{self._left[0]} is not known")


class Program:
    """A kernel's steps, for a launch of any grid."""

    def __init__(
        self,
        kernel: ptx.Kernel,
        shared: Sequence[ptx.Variable],
        decoders: Mapping[str, Decoder],
    ) -> None:
        self.kernel = kernel
        self._names = {variable.name for variable in (*kernel.parameters, *shared)}
        self.bits: list[int] = []  # of each slot; 1 for predicates
        self.constants: dict[int, int] = {}  # slot: value
        self.symbols: dict[int, ptx.Symbol] = {}  # slot: what it holds
        self._slots: dict[Any, int] = {}
        self._local = _block_locals(kernel)
        self.lines = kernel.instructions
        self.steps: list[Step] = []
        for instruction in kernel.instructions:
            self.steps.append(self._decode(instruction, decoders))
        self.steps.append(_run_off)

    @property
    def index(self) -> int:
        """Of the instruction that is being decoded."""
        return len(self.steps)

    def _decode(self, instruction: ptx.Instruction, decoders: Mapping[str, Decoder]) -> Step:
        if instruction.opcode not in decoders:
            raise instruction.unsupported("this instruction is not known")
        try:
            step = decoders[instruction.opcode](instruction, self)
        except (ValueError, TypeError, AttributeError, AssertionError) as error:
            # not the operands that this instruction has
            raise instruction.unsupported(f"the operands are not understood: {error}") from error
        if instruction.guard is None or instruction.opcode == "bra":
            return step
        return _guarded(step, *self.predicate(instruction.guard))

    def _slot(self, key: Any, bits: int) -> int:
        if key not in self._slots:
            self._slots[key] = len(self.bits)
            self.bits.append(bits)
        return self._slots[key]

    def source(self, operand: ptx.Operand, bits: int) -> int:
        """The slot of an operand's value; `bits` is the size of a constant."""
        if isinstance(operand, ptx.Register):
            return self._slot(operand.name, operand.bits)
        if isinstance(operand, ptx.Immediate):
            value = operand.value
            if isinstance(value, float):
                raise ValueError("decimal constants are not known")
            value = (ALL if value else 0) if bits == 1 else value & ((1 << bits) - 1)
            slot = self._slot(("constant", value, bits), bits)
            self.constants[slot] = value
            return slot
        if isinstance(operand, ptx.Symbol):
            if operand.name and operand.name not in self._names and not is_special(operand.name):
                raise ValueError(f"{operand.name} is not declared")
            slot = self._slot(operand, bits)
            self.symbols[slot] = operand
            return slot
        raise TypeError(f"{operand} has no value")

    def result(self, operand: ptx.Operand, bits: int) -> int:
        """The slot of a result; a sink's is read by nobody."""
        if isinstance(operand, ptx.Sink):
            return self._slot(("sink", bits), bits)
        assert isinstance(operand, ptx.Register), operand
        return self._slot(operand.name, operand.bits)

    def predicate(self, operand: ptx.Operand) -> tuple[int, int]:
        """(slot, the lanes to flip in it) of a predicate that may be negated."""
        if isinstance(operand, ptx.Not):
            return self.source(operand.register, 1), ALL
        return self.source(operand, 1), 0

    def uses(self, instruction: str) -> bool:
        """Whether the kernel has such an instruction, named with its first modifier."""
        name, _, modifier = instruction.partition(".")
        return any(i.opcode == name and modifier in i.modifiers[:1] for i in self.lines)

    def read_by(self, instruction: ptx.Instruction) -> list[int]:
        """The slots of the registers that an instruction reads."""
        operands = instruction.operands[_has_result(instruction) :]
        read = [r for operand in (*operands, instruction.guard) for r in _registers(operand)]
        return [self._slots[r.name] for r in read]

    def named_by(self, instruction: ptx.Instruction) -> list[int]:
        """The slots of the registers that an instruction reads or writes."""
        return [self._slots[r.name] for o in instruction.operands for r in _registers(o)]

    def address(self, operand: ptx.Operand, bits: int = 32) -> tuple[int, int]:
        """(slot of the base, offset) of an address operand."""
        assert isinstance(operand, ptx.Address), operand
        return self.source(operand.base, bits), operand.offset

    def put(self, operand: ptx.Operand, bits: int) -> Callable[["Warp", Any], None]:
        """A function that writes a result, in the lanes that run only."""
        slot = self.result(operand, bits)
        if isinstance(operand, ptx.Sink) or operand.name in self._local:  # type: ignore[union-attr]

            def put(warp: "Warp", value: Any) -> None:
                warp.registers[slot] = value

        else:

            def put(warp: "Warp", value: Any) -> None:
                if warp.full:
                    warp.registers[slot] = value
                else:
                    warp.merge(slot, value)

        return put


def _guarded(step: Step, predicate: int, flip: int) -> Step:
    def guarded(warp: "Warp") -> int | None:
        mask = warp.mask
        lanes = (warp.registers[predicate] ^ flip) & mask
        if lanes == mask:
            return step(warp)
        if not lanes:
            return None
        full, warp.mask, warp.full = warp.full, lanes, False
        try:
            outcome = step(warp)
        finally:
            warp.full = full
            warp.mask = mask
        if outcome is not None and outcome != YIELD:
            raise Unsupported("a predicated instruction that waits, under divergence")
        return outcome

    return guarded


def _run_off(warp: "Warp") -> int | None:
    raise RuntimeError("the program ran past its last instruction")


_NO_RESULT = frozenset(
    {
        "st", "red", "bra", "ret", "exit", "trap", "bar", "barrier", "nanosleep", "fence", "membar",
        "setmaxnreg", "cp", "prefetch", "griddepcontrol",
    }
)  # fmt: skip
_MAY_WAIT = frozenset(
    {
        "mbarrier", "bar", "barrier", "shfl", "vote", "elect", "redux", "activemask", "tcgen05",
        "setmaxnreg", "cp", "nanosleep", "griddepcontrol", "bra", "ret", "exit", "stmatrix",
    }
)  # fmt: skip


def _registers(operand: ptx.Operand | None) -> Iterator[ptx.Register]:
    match operand:
        case ptx.Register():
            yield operand
        case ptx.Not(register):
            yield register
        case ptx.Pair(first, second):
            yield from (*_registers(first), *_registers(second))
        case ptx.Vector(items):
            for item in items:
                yield from _registers(item)
        case ptx.Address(base, _, coordinates):
            yield from (*_registers(base), *_registers(coordinates))


def _has_result(instruction: ptx.Instruction) -> bool:
    """Whether its first operand is what it writes."""
    operands = instruction.operands
    return (
        bool(operands)
        and not isinstance(operands[0], ptx.Address)
        and instruction.opcode not in _NO_RESULT
        and (instruction.opcode != "tcgen05" or instruction.modifiers[0] == "ld")
    )


def _block_locals(kernel: ptx.Kernel) -> frozenset[str]:
    """Registers that every basic block writes before it reads them.

    Lanes that do not run need not keep their values of these, so a value that is the same in all
    lanes that run can be one number. Blocks also end where a warp may wait: other lanes run then.
    """
    targets = set(kernel.labels.values())
    written: set[str] = set()
    carried: set[str] = set()
    everything: set[str] = set()
    for index, instruction in enumerate(kernel.instructions):
        if index in targets:
            written = set()
        operands = instruction.operands
        has_result = _has_result(instruction)
        results = {r.name for r in _registers(operands[0])} if has_result else set()
        sources = {r.name for operand in operands[has_result:] for r in _registers(operand)}
        sources |= {r.name for r in _registers(instruction.guard)}
        if instruction.guard is not None:  # lanes that it is not for keep what they have
            carried |= results
        carried |= sources - written
        everything |= sources | results
        written |= results
        if instruction.opcode in _MAY_WAIT:
            written = set()
    return frozenset(everything - carried)
