"""The parser of PTX text, for the syntax that compilers emit (PTX ISA 8.8, "Syntax")."""

import re
from collections.abc import Iterator

from nvfp4.emulator.hazards import UnsupportedInstruction
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

_BITS = {"pred": 1, **{f"{t}{n}": n for t in "busf" for n in (8, 16, 32, 64, 128)}, "f16x2": 32}
_COMMENT = re.compile(r"//[^\n]*|/\*.*?\*/", re.S)
_DEBUG_SECTION = re.compile(r"\.section\s+[\w.]+\s*\{[^}]*\}")
_VARIABLE = re.compile(
    r"(?:\.align\s+(\d+)\s+)?\.([busf]\d+)\s+(?:\.ptr\s+(?:\.\w+\s+)?(?:\.align\s+\d+\s+)?)?"
    r"([\w$%.]+)\s*(?:\[(\d*)\])?$"
)
_REGISTERS = re.compile(r"\.reg\s+\.(\w+)\s+(.*)$", re.S)
_NAME = r"[A-Za-z_$%][\w$.]*"
_HEADER = (".version", ".target", ".address_size")
_IGNORED = (".pragma", ".loc", ".file", ".section")
"""Directives that are hints or debug information, and change no meaning."""


def _is_ignored(statement: str) -> bool:
    return statement.split(None, 1)[0] in _IGNORED


def parse(text: str) -> Module:
    """Read the kernels of a PTX module and its shared variables."""
    module = Module({}, [])
    for dropped in (_COMMENT, _DEBUG_SECTION):
        text = dropped.sub(lambda m: "\n" * m.group().count("\n"), text)
    statements = _statements(text)
    for line, statement in statements:
        if ".entry" in statement:
            kernel = _entry(statement)
            _body(kernel, statements)
            module.kernels[kernel.name] = kernel
        elif ".shared" in statement:
            module.shared.append(_variable(statement.split(".shared", 1)[1].strip(), line))
        elif not (_is_ignored(statement) or statement.startswith(_HEADER)):
            raise UnsupportedInstruction(line, statement, "not known at module level")
    return module


def _statements(text: str) -> Iterator[tuple[int, str]]:
    """Give (line, text) of each statement: braces of blocks alone, labels as "x:".

    A brace opens a block where a statement may start; elsewhere it belongs to a vector operand.
    """
    line, start, current = 1, 1, ""
    depth = parens = 0
    for token in re.findall(r"\n|::|[{};:()]|[^\n{};:()]+", text):
        if token == "\n":
            line += 1
            current += " "
            done = re.fullmatch(r"\s*\.(version|target|address_size|loc|file)\b.*", current)
            if done and ";" not in current:
                yield start, current.strip()
                current = ""
            continue
        if not current.strip():
            start = line
        parens += {"(": 1, ")": -1}.get(token, 0)
        head = current.strip()
        if token == "{" and (not head or ".entry" in head):
            if head:
                yield start, head
            yield line, "{"
            current = ""
        elif token == "}" and not depth and not head:
            yield line, "}"
            current = ""
        elif token == ";" and not depth:
            yield start, head
            current = ""
        elif token == ":" and not depth and not parens and re.fullmatch(_NAME, head):
            yield start, head + ":"
            current = ""
        else:
            depth += {"{": 1, "}": -1}.get(token, 0)
            current += token
    if current.strip():
        raise UnsupportedInstruction(start, current.strip()[:80], "the text ends in a statement")


def _entry(statement: str) -> Kernel:
    match = re.search(r"\.entry\s+([\w$]+)\s*(?:\((.*?)\))?(.*)$", statement, re.S)
    assert match, statement
    name, parameters, directives = match.groups()
    kernel = Kernel(name)
    for parameter in filter(None, map(str.strip, (parameters or "").split(","))):
        kernel.parameters.append(_variable(parameter.removeprefix(".param").strip(), 0))
    for directive, field_name in (("reqntid", "threads"), ("reqnctapercluster", "cluster")):
        found = re.search(rf"\.{directive}\s+(\d+(?:\s*,\s*\d+)*)", directives)
        if found:
            sizes = [*map(int, found.group(1).split(",")), 1, 1][:3]
            setattr(kernel, f"required_{field_name}", tuple(sizes))
    if most := re.search(r"\.maxnreg\s+(\d+)", directives):
        kernel.most_registers = int(most.group(1))
    return kernel


def _variable(text: str, line: int) -> Variable:
    match = _VARIABLE.match(text)
    if not match:
        raise UnsupportedInstruction(line, text, "a declaration that is not understood")
    align, kind, name, count = match.groups()
    size = _BITS[kind] // 8
    return Variable(name, int(align or size), size * (1 if count is None else int(count or 0)))


def _body(kernel: Kernel, statements: Iterator[tuple[int, str]]) -> None:
    scopes: list[dict[str, Register]] = []
    label_scopes: list[str] = []
    blocks = 0
    branches: list[tuple[int, tuple[str, ...]]] = []
    label = ""  # the last one
    for line, statement in statements:
        if statement == "{":
            scopes.append({})
            label_scopes.append(f"@{blocks}" if blocks else "")
            blocks += 1
        elif statement == "}":
            scopes.pop()
            label_scopes.pop()
            if not scopes:
                break
        elif statement.startswith(".reg"):
            _declare(statement, line, scopes[-1], label_scopes[-1])
        elif _is_ignored(statement):
            continue
        elif statement.endswith(":"):
            label = statement[:-1] + label_scopes[-1]
            kernel.labels[label] = len(kernel.instructions)
        elif statement.startswith(".branchtargets"):
            names = statement.removeprefix(".branchtargets").split(",")
            kernel.targets[label] = tuple(name.strip() + label_scopes[-1] for name in names)
        elif statement.startswith("."):
            raise UnsupportedInstruction(line, statement, "a directive that is not known")
        else:
            instruction = _instruction(line, " ".join(statement.split()), scopes)
            if instruction.opcode == "bra":
                branches.append((len(kernel.instructions), tuple(label_scopes)))
            kernel.instructions.append(instruction)
    for index, enclosing in branches:  # a label may stand in an enclosing block, or further down
        bra = kernel.instructions[index]
        (target,) = bra.operands
        assert isinstance(target, Symbol)
        names = [target.name + scope for scope in reversed(enclosing)]
        known = [name for name in names if name in kernel.labels]
        if not known:
            raise bra.unsupported(f"no label {target.name}")
        kernel.instructions[index] = Instruction(
            bra.opcode, bra.modifiers, (Symbol(known[0]),), bra.guard, bra.line, bra.text
        )


def _declare(statement: str, line: int, scope: dict[str, Register], block: str) -> None:
    match = _REGISTERS.match(statement)
    if not match or match.group(1) not in _BITS:
        raise UnsupportedInstruction(line, statement, "a declaration that is not understood")
    bits = _BITS[match.group(1)]
    for name in map(str.strip, match.group(2).split(",")):
        counted = re.fullmatch(r"([\w$%]+)<(\d+)>", name)
        names = [f"{counted[1]}{i}" for i in range(int(counted[2]))] if counted else [name]
        scope.update((n, Register(n + block, bits)) for n in names)


def _instruction(line: int, text: str, scopes: list[dict[str, Register]]) -> Instruction:
    match = re.match(rf"(?:@(!?)({_NAME})\s+)?([a-z][\w.:]*)\s*(.*)$", text)
    if not match:
        raise UnsupportedInstruction(line, text, "not an instruction")
    negated, guard_name, opcode, rest = match.groups()
    guard: Register | Not | None = None
    if guard_name:
        register = _find(guard_name, scopes)
        if register is None:
            raise UnsupportedInstruction(line, text, f"{guard_name} is not declared")
        guard = Not(register) if negated else register
    try:
        operands = tuple(_operand(part, scopes) for part in _split(rest))
    except ValueError as error:
        raise UnsupportedInstruction(line, text, str(error)) from None
    root, *modifiers = opcode.split(".")
    return Instruction(root, tuple(modifiers), operands, guard, line, text)


def _split(text: str) -> list[str]:
    """Split a list of operands at its commas, except within braces and brackets."""
    parts, depth, current = [], 0, ""
    for character in text:
        depth += (character in "[{(") - (character in "]})")
        if character == "," and not depth:
            parts.append(current.strip())
            current = ""
        else:
            current += character
    return [*parts, current.strip()] if current.strip() else parts


def _find(name: str, scopes: list[dict[str, Register]]) -> Register | None:
    return next((scope[name] for scope in reversed(scopes) if name in scope), None)


def _operand(text: str, scopes: list[dict[str, Register]]) -> Operand:
    if text == "_":
        return Sink()
    if text[0] == "{":
        return Vector(tuple(_operand(part, scopes) for part in _split(text[1:-1])))
    if text[0] == "[":
        parts = _split(text[1:-1])
        base, offset = _base(parts[0], scopes)
        coordinates = _operand(parts[1], scopes) if len(parts) > 1 else None
        assert coordinates is None or isinstance(coordinates, Vector), text
        return Address(base, offset, coordinates)
    if "|" in text:
        first, second = text.split("|")
        return Pair(_operand(first.strip(), scopes), _operand(second.strip(), scopes))
    if text[0] == "!":
        operand = _operand(text[1:].strip(), scopes)
        assert isinstance(operand, Register), text
        return Not(operand)
    base, offset = _base(text, scopes)
    if isinstance(base, Symbol):
        return Symbol(base.name, offset)
    return base


def _base(
    text: str, scopes: list[dict[str, Register]]
) -> tuple[Register | Symbol | Immediate, int]:
    match = re.fullmatch(rf"({_NAME})\s*(?:([+-])\s*(-?\w+))?", text)
    if not match:
        return Immediate(_number(text)), 0
    name, sign, offset = match.groups()
    distance = (int(offset, 0) if offset else 0) * (-1 if sign == "-" else 1)
    return _find(name, scopes) or Symbol(name), distance


def _number(text: str) -> int | float:
    if re.fullmatch(r"0[fF][0-9a-fA-F]{8}|0[dD][0-9a-fA-F]{16}", text):
        return int(text[2:], 16)  # the bits of a float or a double
    if re.fullmatch(r"-?(0[xX][0-9a-fA-F]+|\d+)U?", text):
        return int(text.rstrip("U"), 0)
    if re.fullmatch(r"-?\d+\.\d*([eE][+-]?\d+)?", text):
        return float(text)
    raise ValueError(f"the operand {text} is not understood")
