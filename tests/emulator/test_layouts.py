"""Where the emulator's bytes and bits stand, against literals.

A kernel and its emulator that share a wrong swizzle agree; so nothing here is computed by the code
that is tested, nor by a kernel that was made to fit it: addresses, codes and bits are written out.
"""

import struct

import pytest
import torch
from emulated_ptx import (
    AT,
    COPY_OUT,
    E2M1,
    LOAD,
    M128,
    M256,
    MATRIX,
    N8,
    ONE,
    READY,
    WAIT,
    expect,
    run,
    tensor_map,
)

from nvfp4.emulator import Hazard, encode_tensor_map
from nvfp4.emulator.hazards import Unsupported
from nvfp4.emulator.tensor_cores import descriptors
from nvfp4.emulator.tma import tensor_map as maps

# TMA: where the 16-byte chunks of a box of two bytes wide rows stand, chunk by chunk, from an
# address that is a multiple of 1024 on. In 128 bytes, row r's chunk c is chunk c xor r; in 64, the
# four rows of 256 bytes share one exchange of four chunks; in 32, eight rows of 256 one of two.
SWIZZLED = {
    3: [0, 1, 2, 3, 4, 5, 6, 7,
        9, 8, 11, 10, 13, 12, 15, 14,
        18, 19, 16, 17, 22, 23, 20, 21,
        27, 26, 25, 24, 31, 30, 29, 28,
        36, 37, 38, 39, 32, 33, 34, 35,
        45, 44, 47, 46, 41, 40, 43, 42,
        54, 55, 52, 53, 50, 51, 48, 49,
        63, 62, 61, 60, 59, 58, 57, 56],
    2: [0, 1, 2, 3, 4, 5, 6, 7, 9, 8, 11, 10, 13, 12, 15, 14,
        18, 19, 16, 17, 22, 23, 20, 21, 27, 26, 25, 24, 31, 30, 29, 28,
        32, 33, 34, 35, 36, 37, 38, 39, 41, 40, 43, 42, 45, 44, 47, 46,
        50, 51, 48, 49, 54, 55, 52, 53, 59, 58, 57, 56, 63, 62, 61, 60],
    1: [0, 1, 2, 3, 4, 5, 6, 7, 9, 8, 11, 10, 13, 12, 15, 14,
        16, 17, 18, 19, 20, 21, 22, 23, 25, 24, 27, 26, 29, 28, 31, 30,
        32, 33, 34, 35, 36, 37, 38, 39, 41, 40, 43, 42, 45, 44, 47, 46,
        48, 49, 50, 51, 52, 53, 54, 55, 57, 56, 59, 58, 61, 60, 63, 62],
    0: list(range(64)),
}  # fmt: skip
"""Swizzle mode: the place of each chunk of 1024 bytes, in 16 bytes."""


def numbered(chunks: int) -> torch.Tensor:
    """Each 16-byte chunk holds its number, four times."""
    return torch.arange(chunks, dtype=torch.int32).repeat_interleave(4)


def loaded(swizzle: int, start: int, rows: int) -> list[int]:
    """The numbers of the 64 chunks from %r110 on after a box of `rows` rows was loaded to %r110 +
    `start`; -1 where nothing came.
    """
    width = {0: 32, 1: 8, 2: 16, 3: 32}[swizzle]  # words of a row
    data = numbered(rows * width // 4).reshape(rows, width)
    out = torch.empty(256, dtype=torch.int32)
    body = ONE + AT + "mad.lo.u32 %r5,%t,16,%r110; mov.u32 %r0,-1;\n"
    body += "st.shared.v4.b32 [%r5],{%r0,%r0,%r0,%r0}; fence.proxy.async.shared::cta;\n"
    body += READY + expect(data.numel() * 4) + f"add.u32 %r6,%r110,{start}; mov.u32 %r7,0;\n"
    body += f"@%q14 {LOAD.format(2)} [%r6], [%map, {{%r7, %r7}}], [%s];\n" + WAIT + COPY_OUT
    memory = {"x": data, "out": out}
    run(body, memory, {"map": tensor_map(data, (width, rows), swizzle)}, block=64, outputs="out")
    chunks = out.reshape(64, 4)
    assert (chunks == chunks[:, :1]).all()
    return chunks[:, 0].tolist()


@pytest.mark.parametrize("swizzle", SWIZZLED)
def test_a_box_is_swizzled(swizzle):
    rows = {0: 8, 1: 32, 2: 16, 3: 8}[swizzle]
    got = loaded(swizzle, 0, rows)
    assert [got[place] for place in SWIZZLED[swizzle]] == list(range(64))


def test_the_swizzle_is_of_the_absolute_address():
    """A box of two rows at 384 bytes into 1 KB: they are rows 3 and 4 of the pattern."""
    got = loaded(3, 384, 2)
    assert got[24:40] == [3, 2, 1, 0, 7, 6, 5, 4, 12, 13, 14, 15, 8, 9, 10, 11]
    assert got[:24] + got[40:] == [-1] * 48
    got = loaded(2, 128, 4)  # in 64 bytes: 128 bytes are one step of the exchange
    assert got[8:24] == [1, 0, 3, 2, 5, 4, 7, 6, 10, 11, 8, 9, 14, 15, 12, 13]


# Tensor maps

MAP = bytes.fromhex(
    "c0ab896745230000"  # address 0x000023456789abc0
    "a200040040000000"  # rank 3, 2-byte elements, no swizzle; stride 1: 0x40 * 16
    "0010000000000000"  # stride 2: 0x1000 * 16
    "00000000"  # stride 4
    "00000000"
    "63000000c7000000"  # sizes 100, 200
    "0400000000000000"  # 5
    "00000000"
    "000000"
    "0f07010000"  # box 16, 8, 2
) + bytes(68)  # fmt: skip


def test_the_fields_of_a_tensor_map():
    found = maps.decode(MAP)
    assert found.base == 0x23456789ABC0
    assert found.sizes == (100, 200, 5)
    assert found.strides == (1024, 65536)
    assert found.box == (16, 8, 2)
    assert (found.element_bits, found.swizzle) == (16, 0)
    assert found.box_bytes == 512


def changed(position: int, bits: int, value: int) -> maps.TensorMap:
    """The map with a field of word 1 replaced."""
    words = list(struct.unpack("<16Q", MAP))
    words[1] = words[1] & ~((1 << bits) - 1 << position) | value << position
    return maps.decode(struct.pack("<16Q", *words))


@pytest.mark.parametrize(
    "code, bits",
    [(0, 8), (1, 16), (2, 32), (4, 64), (6, 16), (7, 32), (9, 64), (10, 16), (8, 32)],
)
def test_the_element_of_a_tensor_map(code, bits):
    assert changed(7, 4, code).element_bits == bits


def test_four_bit_elements_are_packed():
    words = list(struct.unpack("<16Q", MAP))
    words[1] = words[1] & ~(15 << 7) | 11 << 7
    data = bytearray(struct.pack("<16Q", *words))
    data[55] = 63
    found = maps.decode(bytes(data))
    assert (found.element_bits, found.box_bytes) == (4, 64 // 2 * 8 * 2)


@pytest.mark.parametrize("code, exchanged", [(0, 0), (1, 1), (2, 2), (3, 3)])
def test_the_swizzle_of_a_tensor_map(code, exchanged):
    assert changed(13, 2, code).swizzle == exchanged


@pytest.mark.parametrize("rank", [1, 2, 3, 4, 5])
def test_the_rank_of_a_tensor_map(rank):
    found = changed(4, 3, rank - 1)
    assert found.sizes == (100, 200, 5, 1, 1)[:rank]
    assert found.strides == (1024, 65536, 0, 0)[: rank - 1]
    assert found.box == (16, 8, 2, 1, 1)[:rank]


def test_what_no_tensor_map_has():
    with pytest.raises(Hazard, match="no tensor map"):
        changed(1, 1, 0)
    with pytest.raises(Hazard, match="no tensor map"):
        changed(7, 4, 12)
    data = bytearray(MAP)
    data[55] = 4
    with pytest.raises(Hazard, match="10.0 bytes, not n"):
        maps.decode(bytes(data))
    with pytest.raises(Hazard, match="0x23456789abc8 is no multiple of 16"):
        maps.decode(b"\xc8" + MAP[1:])
    with pytest.raises(Unsupported, match="interleaved"):
        changed(11, 2, 1)
    with pytest.raises(Unsupported, match="NaN"):
        changed(15, 1, 1)
    with pytest.raises(Hazard, match="64 bytes in a 32-byte swizzle"):
        words = list(struct.unpack("<16Q", MAP))
        words[1] |= 1 << 13
        data = bytearray(struct.pack("<16Q", *words))
        data[55] = 31
        maps.decode(bytes(data))


# Matrix descriptors


@pytest.mark.parametrize(
    "descriptor, places",
    [
        # (row, 16 bytes of it): byte of shared memory
        (0x0000401000080080, {(0, 0): 0x800, (0, 1): 0x880, (1, 0): 0x810, (7, 1): 0x8F0,
                              (8, 0): 0x900, (127, 1): 0x800 + 15 * 256 + 112 + 128}),
        # 128-byte swizzle: rows of 128 bytes, 1024 from 8 to the next 8
        (0x4000404000010040, {(0, 0): 0x400, (0, 1): 0x410, (1, 0): 0x490, (1, 1): 0x480,
                              (2, 0): 0x520, (5, 1): 0x6C0, (7, 0): 0x7F0, (8, 0): 0x800,
                              (13, 1): 0xAC0}),
        # its second K = 64: 32 bytes on; the exchange goes by the address
        (0x4000404000010042, {(0, 0): 0x420, (1, 0): 0x4B0, (1, 1): 0x4A0, (2, 0): 0x500,
                              (3, 1): 0x580, (9, 0): 0x8B0}),
        # 64 bytes: rows of 64, 512 from 8 to the next 8
        (0x8000402000010040, {(0, 1): 0x410, (1, 0): 0x440, (2, 0): 0x490, (3, 1): 0x4C0,
                              (4, 0): 0x520, (6, 0): 0x5B0, (8, 0): 0x600}),
        # 32 bytes: rows of 32, 256 from 8 to the next 8
        (0xC000401000010040, {(0, 1): 0x410, (1, 0): 0x420, (3, 1): 0x470, (4, 0): 0x490,
                              (4, 1): 0x480, (7, 0): 0x4F0, (8, 0): 0x500}),
    ],
    ids=["none", "128B", "128B, second K", "64B", "32B"],
)  # fmt: skip
def test_where_a_matrix_descriptor_points(descriptor, places):
    chunks = descriptors.chunks(descriptors.matrix_descriptor(descriptor), 128, 2)
    assert {at: 16 * int(chunks[at]) for at in places} == places


def test_what_no_matrix_descriptor_has():
    for version in (0, 2, 3):
        with pytest.raises(Hazard, match="version"):
            descriptors.matrix_descriptor(MATRIX & ~(3 << 46) | version << 46)
    for layout in (1, 3, 5, 7):
        with pytest.raises(Unsupported, match="layout"):
            descriptors.matrix_descriptor(MATRIX | layout << 61)
    with pytest.raises(Unsupported, match="offset"):
        descriptors.matrix_descriptor(MATRIX | 1 << 49)


# Instruction descriptors


def test_the_fields_of_an_instruction_descriptor():
    found = descriptors.instruction_descriptor(0x08400480)
    assert found == (128, 256, False, False, False)
    assert descriptors.instruction_descriptor(0x10100480)[:2] == (256, 64)
    assert descriptors.instruction_descriptor(0x08022480) == (128, 8, True, False, False)
    assert descriptors.instruction_descriptor(0x08024480) == (128, 8, False, True, False)
    assert descriptors.instruction_descriptor(0x08820480) == (128, 8, False, False, True)
    assert M128 | N8 | E2M1 == 0x08020480 and M256 | N8 | E2M1 == 0x10020480


@pytest.mark.parametrize(
    "bits, error",
    [(1 << 8, Hazard), (1 << 9, Hazard), (1 << 11, Hazard), (1 << 12, Hazard),
     (1 << 15, Hazard), (1 << 16, Hazard), (1 << 4, Hazard),
     (1 << 29, Hazard), (1 << 2, Unsupported), (1 << 31, Unsupported)],
)  # fmt: skip
def test_what_no_instruction_descriptor_has(bits, error):
    with pytest.raises(error, match="instruction descriptor"):
        descriptors.instruction_descriptor(0x08020480 | bits)


def test_an_encoded_tensor_map_is_decoded():
    made = encode_tensor_map(0x23456789ABC0, 6, 0, (100, 200, 5), (1024, 65536), (16, 8, 2))
    assert maps.decode(made) == maps.decode(MAP)
