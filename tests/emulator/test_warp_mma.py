"""What mma.sync computes in the emulator, on fragments that are laid out element by element."""

from collections.abc import Mapping
from typing import Any

import numpy as np
import pytest
import torch
from emulated_ptx import registers, run

from nvfp4.emulator import Hazard, Kind, UnsupportedInstruction

E2M1 = np.array([0, 0.5, 1, 1.5, 2, 3, 4, 6, -0.0, -0.5, -1, -1.5, -2, -3, -4, -6])


def packed(codes: np.ndarray, bits: int) -> np.ndarray:
    """[32, elements] codes as [32, registers] words, the first element lowest."""
    each = 32 // bits
    parts = codes.astype(np.uint64).reshape(32, -1, each) << (np.arange(each) * bits).astype(
        np.uint64
    )
    return parts.sum(-1).astype(np.uint32)


def fragment_a(codes: np.ndarray, bits: int) -> np.ndarray:
    """The words of a [16, K] matrix. Element i of a lane: PTX ISA, "Matrix Fragments for mma"."""
    each, k = 32 // bits, codes.shape[1]
    out = np.zeros((32, k // 2), codes.dtype)
    for lane in range(32):
        for i in range(k // 2):
            row = lane // 4 + 8 * (i // each % 2)
            column = lane % 4 * each + i % each + i // (2 * each) * 4 * each
            out[lane, i] = codes[row, column]
    return packed(out, bits)


def fragment_b(codes: np.ndarray, bits: int) -> np.ndarray:
    """The words of a [8, K] matrix, B transposed."""
    each, k = 32 // bits, codes.shape[1]
    out = np.zeros((32, k // 4), codes.dtype)
    for lane in range(32):
        for i in range(k // 4):
            out[lane, i] = codes[lane // 4, lane % 4 * each + i % each + i // each * 4 * each]
    return packed(out, bits)


def fragment_c(values: np.ndarray) -> np.ndarray:
    """The words of a [16, 8] matrix: c0 and c1 are of row lane / 4, c2 and c3 of 8 rows below."""
    out = np.zeros((32, 4), values.dtype)
    for lane in range(32):
        for i in range(4):
            out[lane, i] = values[lane // 4 + 8 * (i // 2), lane % 4 * 2 + i % 2]
    return packed(out.view(f"u{out.itemsize}"), 8 * out.itemsize)


def mma(form: str, a: np.ndarray, b: np.ndarray, c: np.ndarray, more: str = "", head: str = "",
        memory: Mapping[str, Any] = {}) -> np.ndarray:  # fmt: skip
    """The words of D, [32, registers]. `more`: operands behind C."""
    tensors = {
        n: torch.from_numpy(v.view(np.int32).copy()) for n, v in zip("abc", (a, b, c), strict=True)
    }
    out = torch.zeros(tensors["c"].shape, dtype=torch.int32)
    body, first = "", 10
    names = []
    for name, tensor in tensors.items():
        count = tensor.shape[1]
        body += f"mul.wide.u32 %d1,%t,{4 * count}; add.s64 %d1,%d1,%{name};\n"
        for i in range(count):
            body += f"ld.global.b32 %r{first + i},[%d1+{4 * i}];\n"
        names.append(registers(first, count))
        first += count
    count = out.shape[1]
    body += f"{head}mma.sync.aligned.{form} {registers(60, count)}, {', '.join(names)}{more};\n"
    body += f"mul.wide.u32 %d1,%t,{4 * count}; add.s64 %d1,%d1,%out;\n"
    for i in range(count):
        body += f"st.global.b32 [%d1+{4 * i}],%r{60 + i};\n"
    run(body, {**tensors, "out": out, **memory}, outputs="out")
    return out.numpy().view(np.uint32)


def coded(values: np.ndarray, kind: str) -> np.ndarray:
    """Small integers as codes of a type."""
    source = torch.from_numpy(values)
    if kind in ("s8", "u8"):
        return values.astype(np.int8).view(np.uint8)
    if kind == "tf32":
        return values.astype(np.float32).view(np.uint32) | np.uint32(0x1234 & 0x1FFF)  # ignored
    if kind == "e2m1":
        return np.array([E2M1.tolist().index(v) for v in values.ravel()], np.uint8).reshape(
            values.shape
        )
    dtype = {"f16": torch.float16, "bf16": torch.bfloat16, "e4m3": torch.float8_e4m3fn,
             "e5m2": torch.float8_e5m2}[kind]  # fmt: skip
    codes = source.to(dtype)
    return codes.view(torch.uint8).numpy().view(f"u{codes.element_size()}").reshape(values.shape)


BITS = {"f16": 16, "bf16": 16, "tf32": 32, "e4m3": 8, "e5m2": 8, "s8": 8, "u8": 8}
FORMS = [
    ("m16n8k16", "f16", "f16", "f32"), ("m16n8k8", "f16", "f16", "f32"),
    ("m16n8k16", "bf16", "bf16", "f32"), ("m16n8k8", "bf16", "bf16", "f32"),
    ("m16n8k16", "f16", "f16", "f16"), ("m16n8k8", "f16", "f16", "f16"),
    ("m16n8k4", "tf32", "tf32", "f32"), ("m16n8k8", "tf32", "tf32", "f32"),
    ("m16n8k32", "e4m3", "e4m3", "f32"), ("m16n8k32", "e4m3", "e5m2", "f32"),
    ("m16n8k32", "s8", "s8", "s32"), ("m16n8k16", "s8", "u8", "s32"),
]  # fmt: skip


@pytest.mark.parametrize(("shape", "a", "b", "c"), FORMS)
def test_products_of_small_integers_are_exact(shape, a, b, c):
    k = int(shape[6:])
    random = np.random.default_rng(k)
    x = random.integers(-6, 7, (16, k)).astype(np.float64)
    y = random.integers(0 if b == "u8" else -6, 7, (8, k)).astype(np.float64)
    dtype = {"f32": np.float32, "f16": np.float16, "s32": np.int32}[c]
    z = random.integers(-99, 99, (16, 8)).astype(dtype)
    form = f"{shape}.row.col.{c}.{a}.{b}.{c}"
    got = mma(
        form, fragment_a(coded(x, a), BITS[a]), fragment_b(coded(y, b), BITS[b]), fragment_c(z)
    )
    want = x @ y.T + z
    np.testing.assert_array_equal(got, fragment_c(want.astype(dtype)))


def test_a_sum_is_rounded_once():
    """2^24 + 1 + 1 is 2^24 + 2 in one step, and 2^24 if each product is rounded."""
    x, y = np.zeros((16, 16)), np.zeros((8, 16))
    x[:, :2], y[:, :2] = 1, 1
    z = np.full((16, 8), 2.0**24, np.float32)
    got = mma("m16n8k16.row.col.f32.f16.f16.f32", fragment_a(coded(x, "f16"), 16),
              fragment_b(coded(y, "f16"), 16), fragment_c(z))  # fmt: skip
    assert (got.view(np.float32) == 2.0**24 + 2).all()


SCALED = "m16n8k64.row.col.kind::mxf4nvf4.block_scale.scale_vec::4X.f32.e2m1.e2m1.f32.ue4m3"


def scale_words(scales: np.ndarray, lanes: list[int]) -> np.ndarray:
    """[rows, 4] codes as a register: row r's in lane lanes[r]; elsewhere NaNs."""
    words = np.full((32, 4), 0x7F, np.uint8)
    words[lanes] = scales
    return words.view(np.uint32)[:, 0]


@pytest.mark.parametrize("thread_a", [0, 1])
@pytest.mark.parametrize("thread_b", [0, 1, 2, 3])
def test_four_bit_operands_have_scales(thread_a, thread_b):
    """The scales of A's row g are in lane 4 g + 2 thread-id, those of g + 8 in the next lane; of
    B's column g in lane 4 g + thread-id. All sums are exact in float64.
    """
    random = np.random.default_rng(thread_a * 4 + thread_b)
    x, y = random.integers(0, 16, (16, 64), np.uint8), random.integers(0, 16, (8, 64), np.uint8)
    scales_a = random.integers(0, 0x7F, (16, 4), np.uint8)
    scales_b = random.integers(0, 0x7F, (8, 4), np.uint8)
    scales_a[0, 0] |= 0x80  # the sign of a scale is ignored
    z = random.normal(size=(16, 8)).astype(np.float32)
    lanes_a = [4 * (r % 8) + 2 * thread_a + r // 8 for r in range(16)]
    lanes_b = [4 * r + thread_b for r in range(8)]
    memory = {"sa": scale_words(scales_a, lanes_a), "sb": scale_words(scales_b, lanes_b)}
    head = "mul.wide.u32 %d1,%t,4; add.s64 %d2,%d1,%sa; add.s64 %d3,%d1,%sb;\n"
    head += "ld.global.b32 %r70,[%d2]; ld.global.b32 %r71,[%d3];\n"
    more = f", %r70, {{0, {thread_a}}}, %r71, {{0, {thread_b}}}"
    tensors = {n: torch.from_numpy(v.view(np.int32).copy()) for n, v in memory.items()}
    got = mma(SCALED, fragment_a(x, 4), fragment_b(y, 4), fragment_c(z), more, head, tensors)

    def values(codes, scales):
        e4m3 = torch.from_numpy(scales & 0x7F).view(torch.float8_e4m3fn).double().numpy()
        return E2M1[codes] * np.repeat(e4m3, 16, 1)

    want = (values(x, scales_a) @ values(y, scales_b).T + z).astype(np.float32)
    np.testing.assert_array_equal(got, fragment_c(want))


@pytest.mark.parametrize(("vector", "byte"), [(1, 0), (1, 3), (2, 0), (2, 2)])
def test_scales_of_larger_blocks_begin_at_a_byte(vector, byte):
    """UE8M0: one scale a row of 32 FP8 elements, or two of 64 FP4 elements."""
    random = np.random.default_rng(byte)
    k, kind, bits = (32, "e4m3", 8) if vector == 1 else (64, "e2m1", 4)
    x, y = (random.integers(-4, 5, (n, k)).astype(np.float64) for n in (16, 8))
    codes = np.full((32, 4), 0xFF, np.uint8)  # NaN
    codes[:, byte : byte + vector] = random.integers(120, 135, (32, vector), np.uint8)
    z = np.zeros((16, 8), np.float32)
    name = "mxf8f6f4" if vector == 1 else "mxf4"
    form = f"m16n8k{k}.row.col.kind::{name}.block_scale.scale_vec::{vector}X"
    form += f".f32.{kind}.{kind}.f32.ue8m0"
    head = "mul.wide.u32 %d1,%t,4; add.s64 %d2,%d1,%s1; ld.global.b32 %r70,[%d2];\n"
    more = f", %r70, {{{byte}, 0}}, %r70, {{{byte}, 0}}"
    memory = {"s1": torch.from_numpy(codes.view(np.int32).copy())}
    if kind == "e2m1":
        x, y = np.clip(np.abs(x), 0, 4) * np.sign(x), np.clip(y, -4, 4)
    words = fragment_a(coded(x, kind), bits), fragment_b(coded(y, kind), bits), fragment_c(z)
    got = mma(form, *words, more, head, memory)
    factors = 2.0 ** (codes[:, byte : byte + vector].astype(np.float64) - 127)
    of_a = np.stack([factors[4 * (r % 8) + r // 8] for r in range(16)])
    of_b = np.stack([factors[4 * r] for r in range(8)])
    block = k // vector
    want = (x * np.repeat(of_a, block, 1)) @ (y * np.repeat(of_b, block, 1)).T
    np.testing.assert_array_equal(got, fragment_c(want.astype(np.float32)))


HALVES = "mma.sync.aligned.m16n8k16.row.col.f32.f16.f16.f32 {%r0,%r1,%r2,%r3}"
ZEROS = "".join(f"mov.u32 %r{i},0;\n" for i in range(16))
PLAIN = f"{ZEROS}{HALVES}, {registers(4, 4)}, {registers(8, 2)}, {registers(10, 4)};\n"


@pytest.mark.parametrize(
    ("old", "new", "kind"),
    [
        (ZEROS, "", Kind.UNINITIALISED),
        (ZEROS, ZEROS + "setp.lt.u32 %q0,%t,16; @%q0 bra E;\n", Kind.PARTIAL_WARP),
    ],
)
def test_faults_of_mma(old, new, kind):
    run(PLAIN)
    with pytest.raises(Hazard) as raised:
        run(PLAIN.replace(old, new) + "E: bar.warp.sync -1;\n")
    assert raised.value.kind is kind


@pytest.mark.parametrize(
    "ids", ["{1, 0}, %r9, {0, 0}", "{0, 2}, %r9, {0, 0}", "{0, 0}, %r9, {0, 4}"]
)
def test_selectors_of_scales_are_checked(ids):
    body = (
        f"{ZEROS}mma.sync.aligned.{SCALED} {registers(0, 4)}, {registers(4, 4)}, {registers(8, 2)}"
    )
    run(f"{body}, {registers(10, 4)}, %r9, {{0, 1}}, %r9, {{0, 3}};\n")
    with pytest.raises(Hazard, match="scale factors") as raised:
        run(f"{body}, {registers(10, 4)}, %r9, {ids};\n")
    assert raised.value.kind is Kind.DESCRIPTOR


@pytest.mark.parametrize(
    "form", ["m8n8k16.row.col.f32.f16.f16.f32", "m16n8k16.row.row.f32.f16.f16.f32"]
)
def test_other_mmas_are_refused(form):
    with pytest.raises(UnsupportedInstruction):
        run(PLAIN.replace("m16n8k16.row.col.f32.f16.f16.f32", form))
