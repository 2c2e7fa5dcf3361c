"""Logic, shifts and bit fields (PTX ISA: Logic and Shift Instructions, and bfe to prmt)."""

from collections.abc import Mapping

from nvfp4.emulator import ptx
from nvfp4.emulator.engine.records import COMBINE, Does, Record
from nvfp4.emulator.isa.builder import Builder, Decoder, Lanes
from nvfp4.emulator.isa.elementwise import elementwise, typed
from nvfp4.emulator.isa.modifiers import Modifiers
from nvfp4.emulator.lanes import ALL


def _decode_logic(instruction: ptx.Instruction, builder: Builder) -> Lanes:
    """Decode and, or and xor, also on predicates."""
    letter, bits = typed(instruction)
    if letter == "pred":
        into, a, b = instruction.operands
        (x, flip_x), (y, flip_y) = builder.predicate(a), builder.predicate(b)
        how, to = COMBINE[instruction.opcode], builder.result(into, 1)
        return Lanes([Record(Does.LOGIC, 0, to, (x, y), how, flips=(flip_x, flip_y))])
    return elementwise(instruction, builder, f"{instruction.opcode}_u{bits}", bits)


def _decode_not(instruction: ptx.Instruction, builder: Builder) -> Lanes:
    letter, bits = typed(instruction)
    if letter == "pred":
        into, a = instruction.operands
        return moved_predicate(builder, into, a, ALL)
    return elementwise(instruction, builder, f"not_u{bits}", bits, 1)


def moved_predicate(builder: Builder, into: ptx.Operand, source: ptx.Operand, flip: int) -> Lanes:
    """Move a predicate, with some lanes flipped."""
    slot, negated = builder.predicate(source)
    to = builder.result(into, 1)
    return Lanes([Record(Does.LOGIC, 0, to, (slot,), flips=(flip ^ negated, 0))])


def _decode_shift(instruction: ptx.Instruction, builder: Builder) -> Lanes:
    """Decode shl and shr; amounts above the width count as the width."""
    letter, bits = typed(instruction)
    into, *operands = instruction.operands
    kind = "s" if letter == "s" and instruction.opcode == "shr" else "u"
    name = f"{instruction.opcode}_{kind}{bits}"
    return builder.lanes(name, into, bits, operands, (bits, 32))


def _decode_prmt(instruction: ptx.Instruction, builder: Builder) -> Lanes:
    Modifiers(instruction, "b32").done()
    return elementwise(instruction, builder, "prmt_u32", 32, 3)


def _decode_funnel(instruction: ptx.Instruction, builder: Builder) -> Lanes:
    """Decode shf, which takes 32 bits out of b:a."""
    modifiers = Modifiers(instruction)
    direction = modifiers.need("l", "r")
    mode = modifiers.need("clamp", "wrap")
    modifiers.need("b32")
    modifiers.done()
    return elementwise(instruction, builder, f"shf_{direction}_{mode}", 32, 3)


def _decode_lop3(instruction: ptx.Instruction, builder: Builder) -> Lanes:
    """Decode lop3: bit (a << 2 | b << 1 | c) of the table is the result."""
    Modifiers(instruction, "b32").done()
    into, *operands, table = instruction.operands
    if not isinstance(table, ptx.Immediate):
        raise instruction.unsupported("only with a constant table")
    return builder.lanes("lop3_u32", into, 32, operands, (32, 32, 32), int(table.value) & 255)


def _decode_bitfield(instruction: ptx.Instruction, builder: Builder) -> Lanes:
    """Decode bfe and bfi, whose positions and lengths count modulo 256."""
    letter, bits = typed(instruction)
    into, *operands = instruction.operands
    inserts = instruction.opcode == "bfi"
    kind = "s" if letter == "s" else "u"
    widths = (bits, bits, 32, 32) if inserts else (bits, 32, 32)
    return builder.lanes(f"{instruction.opcode}_{kind}{bits}", into, bits, operands, widths)


def _decode_count(instruction: ptx.Instruction, builder: Builder) -> Lanes:
    """Decode popc, clz, brev and bfind."""
    letter, bits = typed(instruction)
    into, *operands = instruction.operands
    kind = "s" if letter == "s" else "u"
    result = bits if instruction.opcode == "brev" else 32
    return builder.lanes(f"{instruction.opcode}_{kind}{bits}", into, result, operands, (bits,))


DECODERS: Mapping[str, Decoder] = {
    "and": _decode_logic,
    "or": _decode_logic,
    "xor": _decode_logic,
    "not": _decode_not,
    "shl": _decode_shift,
    "shr": _decode_shift,
    "prmt": _decode_prmt,
    "shf": _decode_funnel,
    "lop3": _decode_lop3,
    "bfe": _decode_bitfield,
    "bfi": _decode_bitfield,
    "popc": _decode_count,
    "clz": _decode_count,
    "brev": _decode_count,
    "bfind": _decode_count,
}
