"""What wgmma computes in the emulator, from operands laid out byte by byte, and its faults."""

import numpy as np
import pytest
import torch
from emulated_ptx import registers, run
from matrix_images import HALF, WIDTHS, integers, k_major, mn_major

from nvfp4.emulator import Hazard, Kind, UnsupportedInstruction


def described(mode: int, leading: int, stride: int, start: int) -> int:
    return mode << 62 | stride >> 4 << 32 | leading >> 4 << 16 | start >> 4


A_AT, B_AT = 0x2000, 0x6000  # offsets from the base of dynamic shared memory, which is at 0x400
BASE = 0x400

FENCES = "fence.proxy.async.shared::cta; bar.sync 0;\n"
COMMIT = "wgmma.commit_group.sync.aligned;\n"
WAIT = "wgmma.wait_group.sync.aligned 0;\n"
FENCE = "wgmma.fence.sync.aligned;\n"


def kernel(n: int, form: str, a: str, b: int, words: int, accumulate: bool, tail: str) -> str:
    """Copies both images, loads A's fragment to %r110 on and C to %r0 on, and stores D."""
    body = "mul.wide.u32 %d1,%t,16; mad.lo.u32 %r100,%t,16,%s;\n"
    for image, at in (("a", A_AT), ("b", B_AT)):
        for first in range(0, 16384, 2048):
            body += (
                f"add.s64 %d2,%d1,%{image}; ld.global.v4.b32 {registers(101, 4)},[%d2+{first}];\n"
            )
            body += f"st.shared.v4.b32 [%r100+{at + first}],{registers(101, 4)};\n"
    body += FENCES + f"mul.wide.u32 %d3,%t,{4 * words}; add.s64 %d4,%d3,%c;\n"
    for i in range(words):
        body += f"ld.global.b32 %r{i},[%d4+{4 * i}];\n"
    body += "add.s64 %d5,%d1,%fragment; ld.global.v4.b32 {%r110,%r111,%r112,%r113},[%d5];\n"
    body += f"setp.eq.u32 %q0,%t,%t; mov.b64 %d10,{b:#x};\n{a}"
    enable = "%q0" if accumulate else "!%q0"
    body += FENCE + f"wgmma.mma_async.sync.aligned.{form} {registers(0, words)}, "
    body += f"{'%d11' if a else registers(110, 4)}, %d10, {enable}{tail};\n" + COMMIT + WAIT
    body += "add.s64 %d4,%d3,%out;\n"
    for i in range(words):
        body += f"st.global.b32 [%d4+{4 * i}],%r{i};\n"
    return body


def fragment(matrix: np.ndarray) -> np.ndarray:
    """[64, N] values as [128, registers] words: of each 8 columns, thread t of a warp has columns
    2 (t % 4) and the next one, of row t / 4 and then of row t / 4 + 8.
    """
    rows, columns = matrix.shape
    out = np.zeros((128, columns // 2), matrix.dtype)
    for thread in range(128):
        for i in range(columns // 2):
            row = thread // 32 * 16 + thread % 32 // 4 + 8 * (i // 2 % 2)
            out[thread, i] = matrix[row, i // 4 * 8 + thread % 4 * 2 + i % 2]
    return out.view(np.uint32).reshape(128, -1)


def fragment_a(codes: np.ndarray) -> np.ndarray:
    """[64, 32 bytes] codes as [128, 4] words: rows t / 4 and t / 4 + 8, then the next 16 bytes."""
    octets = codes.view(np.uint8)
    out = np.zeros((128, 4, 4), np.uint8)
    for thread in range(128):
        for i in range(4):
            row = thread // 32 * 16 + thread % 32 // 4 + 8 * (i % 2)
            first = thread % 4 * 4 + i // 2 * 16
            out[thread, i] = octets[row, first : first + 4]
    return out.reshape(128, 16).view(np.uint32)


def launch(body: str, images: dict[str, np.ndarray], **options) -> np.ndarray:
    memory = {name: torch.from_numpy(v.view(np.int32).copy()) for name, v in images.items()}
    memory["out"] = torch.zeros_like(memory["c"])
    run(body, memory, block=128, smem=A_AT + B_AT + 16384, outputs="out", **options)
    return memory["out"].numpy()


def multiply(n, kind, mode=1, total="f32", a_mode=None, trans=(0, 0), leading=4096, stride=1024,
             start=0, accumulate=True, sign=1) -> None:  # fmt: skip
    """One MMA of 64 rows and n columns, against float64. `a_mode`: of A in shared memory."""
    k = {"tf32": 8, "f16": 16, "bf16": 16}.get(kind, 32)
    x, x_codes = integers(1, (64, k), kind)
    y, y_codes = integers(2, (n, k), kind)
    dtype = {"f32": np.float32, "f16": np.float16, "s32": np.int32}[total]
    c = np.random.default_rng(3).integers(-9, 9, (64, n)).astype(dtype)
    if trans[1]:
        image_b = mn_major(np.ascontiguousarray(y_codes.T), mode, leading, stride)
    else:
        image_b = k_major(y_codes, mode, leading, stride, start)
    b = described(mode, leading, stride, BASE + B_AT + start)
    image_a, a, tail = np.zeros(16384, np.uint8), "", ""
    if a_mode is not None:
        image_a = k_major(x_codes, a_mode, leading, stride, 0)
        if trans[0]:
            image_a = mn_major(np.ascontiguousarray(x_codes.T), a_mode, leading, stride)
        a = f"mov.b64 %d11,{described(a_mode, leading, stride, BASE + A_AT):#x};\n"
    if total != "s32":
        tail = f", {sign}, 1"
    if kind in HALF:
        tail += f", {trans[0]}, {trans[1]}" if a else f", {trans[1]}"
    form = f"m64n{n}k{k}.{total}.{kind}.{kind}"
    images = {"a": image_a, "b": image_b, "c": fragment(c), "fragment": fragment_a(x_codes)}
    words = images["c"].shape[1]
    got = launch(kernel(n, form, a, b, words, accumulate, tail), images)
    want = sign * x @ y.T + (c.astype(np.float64) if accumulate else 0)
    np.testing.assert_array_equal(got.view(np.uint32), fragment(want.astype(dtype)))


@pytest.mark.parametrize("n", [8, 64, 128])
@pytest.mark.parametrize("mode", WIDTHS)
def test_b_is_read_in_each_swizzle(mode, n):
    multiply(n, "f16", mode, leading=128, stride=1024)


@pytest.mark.parametrize("start", [0, 32, 64, 96])
def test_k_advances_within_a_swizzled_row(start):
    multiply(32, "f16", 1, start=start)


@pytest.mark.parametrize("kind", ["bf16", "tf32", "e4m3", "s8"])
def test_other_types_are_multiplied(kind):
    multiply(16, kind, 1, "s32" if kind == "s8" else "f32")


@pytest.mark.parametrize("mode", WIDTHS)
def test_a_is_read_from_shared_memory(mode):
    multiply(16, "f16", 1, a_mode=mode, leading=128, stride=1024)


@pytest.mark.parametrize("mode", WIDTHS)
def test_columns_may_be_contiguous(mode):
    """MN-major: `leading` is from one swizzled row to the next along N, `stride` from 8 k to 8 k; a
    matrix without a swizzle has them the other way round.
    """
    multiply(64, "f16", mode, trans=(0, 1), leading=2048, stride=256 if mode == 0 else 1024)
    multiply(64, "bf16", mode, a_mode=mode, trans=(1, 1), leading=2048,
             stride=256 if mode == 0 else 1024)  # fmt: skip


def test_an_accumulator_may_be_new_or_of_half_precision():
    multiply(16, "f16", accumulate=False)
    multiply(16, "f16", total="f16")
    multiply(16, "f16", sign=-1)


def two_batches() -> tuple[str, dict[str, np.ndarray]]:
    """Two MMAs into one accumulator, a batch each."""
    _, x_codes = integers(1, (64, 16), "f16")
    _, y_codes = integers(2, (16, 16), "f16")
    c = np.zeros((64, 16), np.float32)
    images = {"a": np.zeros(16384, np.uint8), "b": k_major(y_codes, 1, 0, 1024),
              "c": fragment(c), "fragment": fragment_a(x_codes)}  # fmt: skip
    b = described(1, 0, 1024, BASE + B_AT)
    body = kernel(16, "m64n16k16.f32.f16.f16", "", b, 8, True, ", 1, 1, 0")
    (mma,) = (line for line in body.splitlines() if "mma_async" in line)
    return body.replace(COMMIT, f"{COMMIT}{mma}\n{COMMIT}"), images


def test_batches_accumulate():
    body, images = two_batches()
    got = launch(body, images).view(np.float32)
    (x, _), (y, _) = integers(1, (64, 16), "f16"), integers(2, (16, 16), "f16")
    np.testing.assert_array_equal(got.view(np.uint32), fragment((2 * x @ y.T).astype(np.float32)))


IMAGE_B = f"{(BASE + B_AT) >> 4:x};\n"
STORE_B = f"st.shared.b32 [%r100+{B_AT}],%r101;\n"


@pytest.mark.parametrize(
    ("old", "new", "kind", "message"),
    [
        (WAIT, "", Kind.EARLY_READ, "without wgmma.wait_group"),
        (WAIT, "wgmma.wait_group.sync.aligned 1;\n", Kind.EARLY_READ, "without wgmma.wait_group"),
        (COMMIT + WAIT, WAIT, Kind.EARLY_READ, "without wgmma.wait_group"),
        (FENCE, "", Kind.EARLY_READ, "no wgmma.fence"),
        (FENCE, FENCE + "mov.u32 %r112,%t;\n", Kind.EARLY_READ, "a register of A was written"),
        (FENCE, FENCE + "mov.u32 %r3,%t;\n", Kind.EARLY_READ, "of the accumulator was written"),
        (WAIT, "mov.u32 %r111,%t;\n" + WAIT, Kind.OVERWRITE, "a register of A was overwritten"),
        (WAIT, "mov.u32 %r1,%t;\n" + WAIT, Kind.OVERWRITE, "was overwritten without wgmma.wait"),
        (WAIT, "bar.sync 0;\n" + STORE_B + WAIT, Kind.OVERWRITE, "waiting for a reader: wgmma"),
        (FENCES, "bar.sync 0;\n", Kind.PROXY, "no fence.proxy.async"),
        (IMAGE_B, f"{(BASE + B_AT + 0x4000) >> 4:x};\n", Kind.UNINITIALISED, "never written"),
    ],
)  # fmt: skip
def test_faults_of_wgmma(old, new, kind, message):
    body, images = two_batches()
    assert old in body
    with pytest.raises(Hazard, match=message) as raised:
        launch(body.replace(old, new), images)
    assert raised.value.kind is kind


def test_wgmma_waits_for_other_warps():
    body, images = two_batches()
    with pytest.raises(Hazard) as raised:
        launch(body.replace(FENCES, "fence.proxy.async.shared::cta;\n"), images)
    assert raised.value.kind in (Kind.EARLY_READ, Kind.UNINITIALISED)


def test_shared_memory_may_be_overwritten_after_the_wait():
    body, images = two_batches()
    launch(body.replace(WAIT, WAIT + "bar.sync 0;\n" + STORE_B), images)
    launch(body.replace(WAIT, WAIT + "mov.u32 %r111,%t;\n"), images)


def test_a_warpgroup_is_four_warps():
    body, images = two_batches()
    memory = {name: torch.from_numpy(v.view(np.int32).copy()) for name, v in images.items()}
    memory["out"] = torch.zeros_like(memory["c"])
    with pytest.raises(Hazard) as raised:
        run(body, memory, block=64, smem=A_AT + B_AT + 16384)
    assert raised.value.kind in (Kind.PARTIAL_WARP, Kind.UNINITIALISED)


@pytest.mark.parametrize("form", ["m64n16k8.f32.f16.f16", "m64n12k16.f32.f16.f16",
                                  "m32n16k16.f32.f16.f16"])  # fmt: skip
def test_other_shapes_are_refused(form):
    body, images = two_batches()
    with pytest.raises(UnsupportedInstruction):
        launch(body.replace("m64n16k16.f32.f16.f16", form), images)


@pytest.mark.parametrize("targets", ["A, B, C", "C, A, B"])
def test_an_index_chooses_a_label(targets):
    """brx.idx: the lanes take three ways, and all come to the end."""
    names = targets.split(", ")
    body = f"bra START;\nTABLE: .branchtargets {targets};\nSTART: rem.u32 %r1,%t,3;\n"
    body += "brx.idx %r1, TABLE;\nA: mov.u32 %r0,10; bra E;\nB: mov.u32 %r0,20; bra E;\n"
    body += "C: mov.u32 %r0,30;\nE: bar.warp.sync -1; mul.wide.u32 %d1,%t,4;\n"
    body += "add.s64 %d1,%d1,%out; st.global.b32 [%d1],%r0;\n"
    out = torch.zeros(32, dtype=torch.int32)
    run(body, {"out": out}, outputs="out")
    values = {"A": 10, "B": 20, "C": 30}
    assert out.tolist() == [values[names[lane % 3]] for lane in range(32)]
    run(body.replace("rem.u32 %r1,%t,3", "mov.u32 %r1,1"), {"out": out}, outputs="out")
    assert out.tolist() == [values[names[1]]] * 32
    with pytest.raises(Hazard) as raised:
        run(body.replace("%t,3", "%t,4"), {"out": out})
    assert raised.value.kind is Kind.OUT_OF_BOUNDS
