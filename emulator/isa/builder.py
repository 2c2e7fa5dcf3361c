"""Building a kernel's program: a decoder makes a step of each instruction.

Constants, special registers and the addresses of variables have slots as registers do, filled when
a warp starts. So a step takes every source from a slot. Instructions that touch registers only
become records instead, which the engine runs.
"""

from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

from nvfp4.emulator import ptx
from nvfp4.emulator.engine import library
from nvfp4.emulator.engine.records import Does, Record, packed
from nvfp4.emulator.engine.registers import ALWAYS, Layout
from nvfp4.emulator.hazards import Unsupported
from nvfp4.emulator.isa.modifiers import Modifiers
from nvfp4.emulator.lanes import ALL, undefined
from nvfp4.emulator.machine.outcomes import YIELD
from nvfp4.emulator.machine.program import Program, Step
from nvfp4.emulator.machine.special_registers import is_special
from nvfp4.emulator.machine.warp import Warp
from nvfp4.emulator.ptx.registers import written_by


class Lanes(NamedTuple):
    """An instruction that the engine runs."""

    records: Sequence[Record]
    step: Step | None = None
    """What runs where the engine cannot; None if only a missing value can be the reason."""


Decoded = Step | Lanes
Decoder = Callable[[ptx.Instruction, "Builder"], Decoded]
"""Makes an instruction's step, or the engine's records of it."""
Operation = Callable[[ptx.Instruction, "Builder", Modifiers], Step]
"""Makes an instruction's step after its first modifiers have been taken."""


def build(
    kernel: ptx.Kernel, shared: Sequence[ptx.Variable], decoders: Mapping[str, Decoder]
) -> Program:
    """Decode a kernel, whose module has these shared variables."""
    builder = Builder(kernel, shared)
    for instruction in kernel.instructions:
        step, records = _step(instruction, builder, decoders)
        builder.steps.append(step)
        builder.records.append(records)
    builder.steps.append(_run_off)
    builder.records.append(())
    return builder.program()


def _step(
    instruction: ptx.Instruction, builder: "Builder", decoders: Mapping[str, Decoder]
) -> tuple[Step, Sequence[Record]]:
    if instruction.opcode not in decoders:
        raise instruction.unsupported("this instruction is not known")
    try:
        decoded = decoders[instruction.opcode](instruction, builder)
    except (ValueError, TypeError, AttributeError, AssertionError) as error:
        # the operands are not those of this instruction
        raise instruction.unsupported(f"the operands are not understood: {error}") from error
    records: Sequence[Record] = ()
    if isinstance(decoded, Lanes):
        records = decoded.records
        decoded = decoded.step or (lambda warp: warp.without_value(instruction))
    if instruction.guard is None or instruction.opcode == "bra":
        return decoded, records
    skipped: list[tuple[int, int]] = []
    if instruction.opcode in ("ld", "atom"):
        written = written_by(instruction)
        skipped = [(builder.result(r, 32), undefined(r.bits)) for r in written]
    predicate, flip = builder.predicate(instruction.guard)
    return (
        _guarded(decoded, predicate, flip, skipped),
        [record.guarded(predicate, flip) for record in records],
    )


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
        self.records: list[Sequence[Record]] = []
        self.bits: list[int] = [1]  # the size of each slot; 1 for predicates
        self._constants: dict[int, int] = {}
        self._symbols: dict[int, ptx.Symbol] = {}
        self._slots: dict[Any, int] = {"": ALWAYS}
        self._names = {variable.name for variable in (*kernel.parameters, *shared)}
        self._written = {r.name for i in kernel.instructions for r in written_by(i)}

    def program(self) -> Program:
        """Return what has been decoded."""
        registers = {name: slot for name, slot in self._slots.items() if isinstance(name, str)}
        layout = Layout(self.bits, self._constants, self._symbols)
        return Program(
            kernel=self.kernel,
            shared=self._shared,
            steps=self.steps,
            code=packed(self.records, layout),
            layout=layout,
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

        def put(warp: Warp, value: Any) -> None:
            if warp.full:
                warp.registers[slot] = value
            else:
                warp.registers.put(slot, value, warp.mask)

        return put

    # Records for the engine

    def scratch(self, bits: int, number: int) -> int:
        """Give a slot for a value between two records of an instruction."""
        return self._slot(("scratch", bits, number), bits)

    def operation(self, name: str, to: int, *sources: int, immediate: int = 0) -> Record:
        """Make a record of an operation by its name in operations.h."""
        number = library.operations().get(name)
        if number is None:
            raise ValueError(f"there is no operation {name}")
        return Record(Does.VALUE, number, to, sources, immediate)

    def read(self, operand: ptx.Operand, bits: int, number: int = 0) -> tuple[int, list[Record]]:
        """Give the slot of an operand in `bits` bits, and the records that put it there.

        A register may be wider than its use, which then ignores its upper bits.
        """
        slot = self.source(operand, bits)
        have = self.bits[slot]
        if have == bits:
            return slot, []
        narrow = self.scratch(bits, number)
        return narrow, [self.operation(f"cvt_u{bits}_u{have}", narrow, slot)]

    def write(
        self, operand: ptx.Operand, bits: int, signed: bool = False
    ) -> tuple[int, list[Record]]:
        """Give a slot for a result of `bits` bits, and what extends it to its register."""
        slot = self.result(operand, bits)
        have = self.bits[slot]
        if have == bits:
            return slot, []
        letter = "s" if signed else "u"
        narrow = self.scratch(bits, 4)
        name = f"cvt_{letter}{have}_{letter}{bits}" if have > bits else f"cvt_u{have}_u{bits}"
        return narrow, [self.operation(name, slot, narrow)]

    def lanes(
        self,
        name: str,
        into: ptx.Operand,
        bits: int,
        operands: Sequence[ptx.Operand],
        widths: Sequence[int],
        immediate: int = 0,
    ) -> Lanes:
        """Put the operation `name` of some operands, of these widths, into a result."""
        if len(operands) != len(widths):
            raise ValueError(f"{len(operands)} operands behind the result, not {len(widths)}")
        before: list[Record] = []
        sources = []
        for number, (operand, width) in enumerate(zip(operands, widths, strict=True)):
            slot, records = self.read(operand, width, number)
            sources.append(slot)
            before += records
        to, after = self.write(into, bits)
        return Lanes([*before, self.operation(name, to, *sources, immediate=immediate), *after])


def _guarded(step: Step, predicate: int, flip: int, skipped: Sequence[tuple[int, int]]) -> Step:
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
            for slot, value in skipped:
                if warp.registers.content(slot) is None:
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
