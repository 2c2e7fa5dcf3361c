"""PTX as values: operands, instructions, variables, kernels and modules."""

from dataclasses import dataclass, field

from nvfp4.emulator.hazards import UnsupportedInstruction


@dataclass(frozen=True, slots=True)
class Register:
    name: str  # unique in its kernel: a name declared in an inner block carries its block's number
    bits: int  # 1 for predicates


@dataclass(frozen=True, slots=True)
class Immediate:
    value: int | float


@dataclass(frozen=True, slots=True)
class Symbol:
    """The name of a variable, a parameter, a label or a special register."""

    name: str
    offset: int = 0


@dataclass(frozen=True, slots=True)
class Sink:
    """The operand `_`, a result that nobody wants."""


@dataclass(frozen=True, slots=True)
class Not:
    register: Register


@dataclass(frozen=True, slots=True)
class Pair:
    """Two results, `%r|%p`."""

    first: "Operand"
    second: "Operand"


@dataclass(frozen=True, slots=True)
class Vector:
    items: tuple["Operand", ...]


@dataclass(frozen=True, slots=True)
class Address:
    """An address, `[base + offset]`, or `[base, {coordinates}]` for tensors."""

    base: "Register | Symbol | Immediate"
    offset: int = 0
    coordinates: Vector | None = None


Operand = Register | Immediate | Symbol | Sink | Not | Pair | Vector | Address


@dataclass(frozen=True, slots=True)
class Instruction:
    opcode: str
    modifiers: tuple[str, ...]
    operands: tuple[Operand, ...]
    guard: Register | Not | None
    line: int
    text: str

    def unsupported(self, why: str) -> UnsupportedInstruction:
        return UnsupportedInstruction(self.line, self.text, why)


@dataclass(frozen=True, slots=True)
class Variable:
    """A parameter or a shared variable; size 0 means as large as the launch says."""

    name: str
    align: int
    size: int


@dataclass(slots=True)
class Kernel:
    name: str
    parameters: list[Variable] = field(default_factory=list)
    instructions: list[Instruction] = field(default_factory=list)
    labels: dict[str, int] = field(default_factory=dict)  # to an index into instructions
    targets: dict[str, tuple[str, ...]] = field(default_factory=dict)
    """The labels of each .branchtargets, by its own label."""
    required_threads: tuple[int, int, int] | None = None
    required_cluster: tuple[int, int, int] | None = None
    most_registers: int | None = None
    """The registers of a thread that .maxnreg allows, if it is there."""

    @property
    def parameter_offsets(self) -> dict[str, int]:
        offsets, end = {}, 0
        for parameter in self.parameters:
            offsets[parameter.name] = end = -(-end // parameter.align) * parameter.align
            end += parameter.size
        return offsets


@dataclass(frozen=True, slots=True)
class Module:
    kernels: dict[str, Kernel]
    shared: list[Variable]

    def kernel(self, name: str) -> Kernel:
        if name not in self.kernels:
            raise KeyError(f"no kernel {name} in this PTX; it has {', '.join(self.kernels)}")
        return self.kernels[name]
