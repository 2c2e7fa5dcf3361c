"""MMAs of one warp on registers (PTX ISA: mma.sync), plain and block-scaled.

Products and sums are computed in float64, and the accumulator is added last. The result is rounded
once. PTX ISA leaves the order and the precision of the sum open; results agree with hardware where
the sums are exact.
"""

import re
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import numpy as np

from nvfp4.emulator import ptx
from nvfp4.emulator.engine.records import Does, Record
from nvfp4.emulator.hazards import Hazard, Kind
from nvfp4.emulator.isa.builder import Builder, Decoded, Decoder, Lanes
from nvfp4.emulator.isa.modifiers import Modifiers
from nvfp4.emulator.lanes import pick
from nvfp4.emulator.tensor_cores.elements import DECODE, UE4M3, UE8M0
from nvfp4.emulator.tensor_cores.fragments import (
    accumulator,
    accumulator_words,
    matrix_a,
    matrix_b,
)

_KINDS = ("kind::f8f6f4", "kind::mxf8f6f4", "kind::mxf4", "kind::mxf4nvf4")
_TABLES = {"ue4m3": UE4M3, "ue8m0": UE8M0}
_SUMS = ("f32", "f16", "s32")


class _Types(NamedTuple):
    """The element types of an MMA, as PTX orders them."""

    d: str
    a: str
    b: str
    c: str


_HALVES = tuple(_Types("f32", half, half, "f32") for half in ("f16", "bf16"))
"""What the engine multiplies."""


def _types(instruction: ptx.Instruction, modifiers: Modifiers) -> tuple[_Types, str]:
    """Take the types of D, A, B and C, and that of the scale factors ("" if there are none)."""
    names = [m for m in instruction.modifiers if m in DECODE or m in _SUMS]
    if len(names) != 4 or names[0] not in _SUMS or names[3] not in _SUMS:
        raise instruction.unsupported("the types are not known")
    for name in names:
        modifiers.need(name)
    return _Types(*names), modifiers.take(*_TABLES)


def _decode_mma(instruction: ptx.Instruction, builder: Builder) -> Decoded:
    modifiers = Modifiers(instruction, "sync", "aligned", "row", "col")
    shape = next((m for m in instruction.modifiers if re.fullmatch(r"m16n8k\d+", m)), "m16n8k16")
    k = int(modifiers.need(shape)[6:])
    modifiers.take(*_KINDS)
    scaled = bool(modifiers.take("block_scale"))
    per_k = {"scale_vec::4X": 4, "scale_vec::2X": 2, "scale_vec::1X": 1, "": 1}[
        modifiers.take("scale_vec::4X", "scale_vec::2X", "scale_vec::1X")
    ]
    types, scale_type = _types(instruction, modifiers)
    modifiers.done()
    if scaled != bool(scale_type) or types.c != types.d:
        raise instruction.unsupported("the types do not belong together")
    bits, decode_a = DECODE[types.a]
    bits_b, decode_b = DECODE[types.b]
    if bits != bits_b:
        raise instruction.unsupported("operands of unequal size")
    d, a, b, c, *scales = instruction.operands
    slots_a = _slots(builder, a, k * bits // 64)
    slots_b = _slots(builder, b, k * bits // 128)
    count = 2 if types.d == "f16" else 4
    slots_c = _slots(builder, c, count)
    assert isinstance(d, ptx.Vector) and len(d.items) == count, d
    slots_d = tuple(builder.result(item, 32) for item in d.items)
    finish = _FINISH[types.d]
    scale = (
        _decode_scales(instruction, builder, scales, per_k, _TABLES[scale_type]) if scaled else None
    )
    if not scaled and scales:
        raise ValueError(f"{len(scales)} operands behind C")

    def step(warp: Any) -> int | None:
        if (blocked := warp.converge()) is not None:
            return blocked
        left = decode_a(matrix_a(warp.registers.rows(slots_a), bits))
        right = decode_b(matrix_b(warp.registers.rows(slots_b), bits))
        if scale is not None:
            factors_a, factors_b = scale(warp)
            left = left * np.repeat(factors_a, k // per_k, 1)
            right = right * np.repeat(factors_b, k // per_k, 1)
        with np.errstate(all="ignore"):
            words = finish(left.dot(right.T), warp.registers.rows(slots_c))
        warp.registers.set_rows(slots_d, words)
        return None

    if scale is None and shape == "m16n8k16" and types in _HALVES:
        registers = (*slots_a, *slots_b, *slots_c, *slots_d)
        bfloat16 = int(types.a == "bf16")
        return Lanes([Record(Does.MULTIPLY, immediate=bfloat16, elements=registers)], step)
    return step


def _slots(builder: Builder, operand: ptx.Operand, count: int) -> tuple[int, ...]:
    items = operand.items if isinstance(operand, ptx.Vector) else (operand,)
    if len(items) != count:
        raise ValueError(f"{len(items)} registers for {count}")
    return tuple(builder.source(item, 32) for item in items)


def _add_f32(product: np.ndarray, words: np.ndarray) -> np.ndarray:
    total = product + accumulator(words, 32).view(np.float32)
    return accumulator_words(total.astype(np.float32))


def _add_f16(product: np.ndarray, words: np.ndarray) -> np.ndarray:
    total = product + accumulator(words, 16).view(np.float16)
    return accumulator_words(total.astype(np.float16))


def _add_s32(product: np.ndarray, words: np.ndarray) -> np.ndarray:
    total = product.astype(np.int64) + accumulator(words, 32).view(np.int32)
    return accumulator_words(total.astype(np.int32))


_FINISH: Mapping[str, Callable[[np.ndarray, np.ndarray], np.ndarray]] = {
    "f32": _add_f32,
    "f16": _add_f16,
    "s32": _add_s32,
}
"""How a float64 product is added to words of C, giving D's words, by their type."""


def _decode_scales(
    instruction: ptx.Instruction,
    builder: Builder,
    operands: list[ptx.Operand],
    per_k: int,
    table: np.ndarray,
) -> Callable[[Any], tuple[np.ndarray, np.ndarray]]:
    """Make a function that gives the [16, per_k] and [8, per_k] scale factors of A and B.

    A register holds up to four, from the byte `byte-id` on. Those of A's rows g and g + 8 are in
    lanes 4 g + 2 i and the next one, for `thread-id` i. Those of B's column g are in lane 4 g + i.
    """
    data_a, selectors_a, data_b, selectors_b = operands
    parts = []
    for data, selectors in ((data_a, selectors_a), (data_b, selectors_b)):
        assert isinstance(selectors, ptx.Vector) and len(selectors.items) == 2, selectors
        byte, thread = (builder.source(item, 16) for item in selectors.items)
        parts.append((builder.source(data, 32), byte, thread))

    def read(warp: Any, which: int, threads: int) -> np.ndarray:
        """Give [8, lanes of a quad that hold scales, per_k] factors."""
        slot, byte_slot, thread_slot = parts[which]
        byte = pick(warp.registers[byte_slot], warp.mask)
        thread = pick(warp.registers[thread_slot], warp.mask)
        if byte not in range(0, 4, per_k) or thread >= threads:
            raise Hazard(Kind.DESCRIPTOR, f"byte-id {byte} and thread-id {thread} of scale factors")
        octets = warp.registers.rows((slot,)).view(np.uint8).reshape(8, threads, 4 // threads, 4)
        return table[octets[:, thread, :, byte : byte + per_k]]

    def scales(warp: Any) -> tuple[np.ndarray, np.ndarray]:
        rows = read(warp, 0, 2)  # [g, half, factor]
        return rows.transpose(1, 0, 2).reshape(16, per_k), read(warp, 1, 4)[:, 0]

    return scales


DECODERS: Mapping[str, Decoder] = {"mma": _decode_mma}
