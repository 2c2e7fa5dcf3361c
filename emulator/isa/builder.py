"""Building a kernel's program: a decoder makes a step of each instruction.

Constants, special registers and the addresses of variables have slots as registers do, filled when
a warp starts. So a step takes every source from a slot.
"""

from collections.abc import Callable, Mapping, Sequence
from typing import Any

from nvfp4.emulator import ptx
from nvfp4.emulator.hazards import Unsupported
from nvfp4.emulator.isa.modifiers import Modifiers
from nvfp4.emulator.lanes import ALL, undefined
from nvfp4.emulator.machine.outcomes import YIELD
from nvfp4.emulator.machine.program import Program, Step
from nvfp4.emulator.machine.special_registers import is_special
from nvfp4.emulator.machine.warp import Warp
from nvfp4.emulator.ptx.registers import block_locals, written_by

Decoder = Callable[[ptx.Instruction, "Builder"], Step]
"""Makes an instruction's step."""
Operation = Callable[[ptx.Instruction, "Builder", Modifiers], Step]
"""Makes an instruction's step after its first modifiers have been taken."""


def build(
    kernel: ptx.Kernel, shared: Sequence[ptx.Variable], decoders: Mapping[str, Decoder]
) -> Program:
    """Decode a kernel, whose module has these shared variables."""
    builder = Builder(kernel, shared)
    for instruction in kernel.instructions:
        builder.steps.append(_step(instruction, builder, decoders))
    builder.steps.append(_run_off)
    return builder.program()


def _step(
    instruction: ptx.Instruction, builder: "Builder", decoders: Mapping[str, Decoder]
) -> Step:
    if instruction.opcode not in decoders:
        raise instruction.unsupported("this instruction is not known")
    try:
        step = decoders[instruction.opcode](instruction, builder)
    except (ValueError, TypeError, AttributeError, AssertionError) as error:
        # the operands are not those of this instruction
        raise instruction.unsupported(f"the operands are not understood: {error}") from error
    if instruction.guard is None or instruction.opcode == "bra":
        return step
    skipped = {}
    if instruction.opcode in ("ld", "atom"):
        skipped = {builder.result(r, 32): undefined(r.bits) for r in written_by(instruction)}
    return _guarded(step, *builder.predicate(instruction.guard), skipped)


def _packs(instruction: ptx.Instruction) -> bool:
    """Say whether an instruction packs its sources into one register.

    Compilers leave a part undefined where nothing uses it, by a register that is never written.
    """
    _, *sources = instruction.operands or (None,)
    if instruction.opcode == "mov":
        return isinstance(sources[0], ptx.Vector)
    return instruction.opcode == "cvt" and len(sources) > 1


class Builder:
    """The slots and steps of a kernel, as far as it has been decoded."""

    def __init__(self, kernel: ptx.Kernel, shared: Sequence[ptx.Variable]) -> None:
        self.kernel = kernel
        self._shared = shared
        self.steps: list[Step] = []
        self.bits: list[int] = []  # the size of each slot; 1 for predicates
        self._constants: dict[int, int] = {}
        self._symbols: dict[int, ptx.Symbol] = {}
        self._slots: dict[Any, int] = {}
        self._names = {variable.name for variable in (*kernel.parameters, *shared)}
        self._local = block_locals(kernel)
        self._written = {r.name for i in kernel.instructions for r in written_by(i)}

    def program(self) -> Program:
        """Return what has been decoded."""
        registers = {name: slot for name, slot in self._slots.items() if isinstance(name, str)}
        return Program(
            kernel=self.kernel,
            shared=self._shared,
            steps=self.steps,
            bits=self.bits,
            constants=self._constants,
            symbols=self._symbols,
            registers=registers,
        )

    @property
    def index(self) -> int:
        """The number of the instruction that is being decoded."""
        return len(self.steps)

    def _slot(self, key: Any, bits: int) -> int:
        if key not in self._slots:
            self._slots[key] = len(self.bits)
            self.bits.append(bits)
        return self._slots[key]

    def source(self, operand: ptx.Operand, bits: int) -> int:
        """Give the slot of an operand's value; `bits` is the size of a constant."""
        if isinstance(operand, ptx.Register):
            slot = self._slot(operand.name, operand.bits)
            if operand.name not in self._written and _packs(self.kernel.instructions[self.index]):
                self._constants[slot] = undefined(operand.bits)
            return slot
        if isinstance(operand, ptx.Immediate):
            value = operand.value
            if isinstance(value, float):
                raise ValueError("decimal constants are not known")
            value = (ALL if value else 0) if bits == 1 else value & ((1 << bits) - 1)
            slot = self._slot(("constant", value, bits), bits)
            self._constants[slot] = value
            return slot
        if isinstance(operand, ptx.Symbol):
            if operand.name and operand.name not in self._names and not is_special(operand.name):
                raise ValueError(f"{operand.name} is not declared")
            slot = self._slot(operand, bits)
            self._symbols[slot] = operand
            return slot
        raise TypeError(f"{operand} has no value")

    def result(self, operand: ptx.Operand, bits: int) -> int:
        """Give the slot of a result; nobody reads that of a sink."""
        if isinstance(operand, ptx.Sink):
            return self._slot(("sink", bits), bits)
        assert isinstance(operand, ptx.Register), operand
        return self._slot(operand.name, operand.bits)

    def predicate(self, operand: ptx.Operand) -> tuple[int, int]:
        """Give the slot of a predicate, and the lanes to flip in it if it is negated."""
        if isinstance(operand, ptx.Not):
            return self.source(operand.register, 1), ALL
        return self.source(operand, 1), 0

    def address(self, operand: ptx.Operand, bits: int = 32) -> tuple[int, int]:
        """Give the slot of an address operand's base, and its offset in bytes."""
        assert isinstance(operand, ptx.Address), operand
        return self.source(operand.base, bits), operand.offset

    def put(self, operand: ptx.Operand, bits: int) -> Callable[[Warp, Any], None]:
        """Make a function that writes a result, in the running lanes only."""
        slot = self.result(operand, bits)
        if isinstance(operand, ptx.Sink) or operand.name in self._local:  # type: ignore[union-attr]

            def put(warp: Warp, value: Any) -> None:
                warp.registers[slot] = value

        else:

            def put(warp: Warp, value: Any) -> None:
                if warp.full:
                    warp.registers[slot] = value
                else:
                    warp.merge(slot, value)

        return put


def _guarded(step: Step, predicate: int, flip: int, skipped: Mapping[int, int]) -> Step:
    """Run a step in the lanes whose predicate is true.

    Compilers use what a load leaves in the other lanes, if no result depends on it. So a register
    without a value gets an undefined one there, by its slot.
    """

    def guarded(warp: Warp) -> int | None:
        mask = warp.mask
        lanes = (warp.registers[predicate] ^ flip) & mask
        if lanes == mask:
            return step(warp)
        if not lanes:
            for slot, value in skipped.items():
                if warp.registers[slot] is None:
                    warp.registers[slot] = value
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


def _run_off(warp: Warp) -> int | None:
    raise RuntimeError("the program ran past its last instruction")
