"""PTX as text and as values: the parser, and what it makes of a module."""

from nvfp4.emulator.ptx.parser import parse
from nvfp4.emulator.ptx.syntax import (
    Address,
    Immediate,
    Instruction,
    Kernel,
    Module,
    Not,
    Operand,
    Pair,
    Register,
    Sink,
    Symbol,
    Variable,
    Vector,
)

__all__ = [
    "Address",
    "Immediate",
    "Instruction",
    "Kernel",
    "Module",
    "Not",
    "Operand",
    "Pair",
    "Register",
    "Sink",
    "Symbol",
    "Variable",
    "Vector",
    "parse",
]
