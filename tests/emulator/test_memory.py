"""What instructions on memory do in the emulator: loads, stores, copies, tensor memory."""

import functools
import math
import operator
import struct

import numpy as np
import pytest
import torch
from emulated_ptx import (
    ALLOCATE,
    AT,
    COPY_OUT,
    FILL,
    FREE,
    LOAD,
    LOAD_BYTES,
    ONE,
    OWN_STORE,
    PEERS,
    RANKS,
    READY,
    STORE,
    STORED,
    WAIT,
    expect,
    fill_tmem,
    registers,
    run,
    tensor_map,
)
from emulated_values import (
    ALL,
    NAMES,
    s,
    tensor,
)

from nvfp4.emulator import Hazard, Kind, execute


@pytest.mark.parametrize("count", [1, 2, 4, 8])
@pytest.mark.parametrize("bits", [8, 16, 32, 64])
@pytest.mark.parametrize("space", ["global", "shared"])
def test_vectors_are_loaded_and_stored(count, bits, space):
    if bits * count > 256 or (bits * count == 256 and space == "shared"):
        bits //= 2
    name = NAMES[bits]
    each_ = "{" + ", ".join(f"%{name}{i + 10}" for i in range(count)) + "}"
    turned = "{" + ", ".join(f"%{name}{i + 10}" for i in reversed(range(count))) + "}"
    vector, width = f".v{count}" if count > 1 else "", bits // 8 * count
    if count == 1:
        each_ = turned = f"%{name}10"
    data = np.random.default_rng(0).integers(0, 256, 32 * width, np.uint8)
    memory = {"x": tensor(data), "out": torch.empty(32 * width, dtype=torch.uint8)}
    body = f"mul.wide.u32 %d50,%t,{width}; add.s64 %d51,%d50,%x; add.s64 %d52,%d50,%out;\n"
    body += f"ld.global{vector}.b{bits} {each_}, [%d51];\n"
    if space == "shared":
        body += f"mad.lo.u32 %r100,%t,{width},%s; st.shared{vector}.b{bits} [%r100], {turned};\n"
        body += f"ld.shared{vector}.b{bits} {each_}, [%r100];\n"
        turned = each_
    run(body + f"st.global{vector}.b{bits} [%d52], {turned};", memory, outputs="out")
    want = data.view(f"u{bits // 8}").reshape(32, count)[:, ::-1]
    got = memory["out"].numpy().view(f"u{bits // 8}").reshape(32, count)
    np.testing.assert_array_equal(got, want)


def test_narrow_loads_extend():
    data = np.arange(120, 152, dtype=np.uint8)
    for kind, want in (("s8", data.view(np.int8).astype(np.int32)), ("u8", data.astype(np.int32))):
        out = torch.empty(32, dtype=torch.int32)
        body = f"cvt.u64.u32 %d5,%t; add.s64 %d5,%d5,%x; ld.global.{kind} %r0,[%d5]; {STORE}"
        run(body, {"x": tensor(data), "out": out}, outputs="out")
        assert out.tolist() == want.tolist()


@pytest.mark.parametrize("reads", ["none", "some"])
def test_lanes_that_do_not_load_have_an_undefined_value(reads):
    """They may use it; it is a NaN of every format."""
    body = f"setp.lt.u32 %q0,%t,{0 if reads == 'none' else 8};\n"
    body += "mul.wide.u32 %d1,%t,4; add.s64 %d2,%d1,%x; @%q0 ld.global.b32 %r0,[%d2];\n" + STORE
    x, out = torch.arange(32, dtype=torch.int32), torch.zeros(32, dtype=torch.int32)
    run(body, {"x": x, "out": out}, outputs="out")
    x[0 if reads == "none" else 8 :] = -1
    assert out.tolist() == x.tolist()
    with pytest.raises(Hazard) as raised:
        run(body.replace("@%q0 ld.global.b32 %r0", "@%q0 ld.global.b32 %r1"), {"x": x, "out": out})
    assert raised.value.kind is Kind.UNINITIALISED


@pytest.mark.parametrize(
    "instruction",
    ["mov.b32 %r0,{%h1,%h9};", "cvt.rn.satfinite.e4m3x2.f32 %h2,%r99,%r98; cvt.u32.u16 %r0,%h2;"],
)
def test_a_part_that_is_never_written_is_undefined(instruction):
    """Compilers pack values in pairs and leave the other half out; other uses are refused."""
    out = torch.zeros(32, dtype=torch.int32)
    start = "mov.u16 %h1,7; mov.u32 %r98,0f40E00000;\n"  # 7, which is 0x4E as E4M3
    run(start + instruction + STORE, {"out": out}, outputs="out")
    assert out[0].item() & ALL == (0xFFFF0007 if "mov.b32" in instruction else 0x7F4E)
    with pytest.raises(Hazard) as raised:
        run("add.u32 %r0,%r97,1;" + STORE, {"out": out})
    assert raised.value.kind is Kind.UNINITIALISED


def test_parameters_are_read_by_width():
    text = """.version 8.8
    .target sm_100a
    .address_size 64
    .visible .entry k(.param .u64 out, .param .u8 small, .param .align 8 .b8 blob[12]) {
    .reg .b16 %h<9>; .reg .b32 %r<9>; .reg .b64 %d<9>;
    ld.param.u64 %d0, [out]; ld.param.v2.b8 {%h0, %h1}, [blob+2]; ld.param.u8 %r1, [small];
    ld.param.v2.b32 {%r2, %r3}, [blob]; ld.param.b32 %r4, [blob+8]; cvt.u32.u16 %r5, %h0;
    cvt.u32.u16 %r6, %h1; shl.b32 %r6, %r6, 8; or.b32 %r5, %r5, %r6;
    st.global.v4.b32 [%d0], {%r1, %r2, %r3, %r4}; st.global.b32 [%d0+16], %r5; ret; }"""
    out = torch.empty(5, dtype=torch.int32)
    blob = bytes(range(1, 13))
    parameters = struct.pack("<QB7x", out.data_ptr(), 200) + blob
    execute(text, "k", (1, 1, 1), (1, 1, 1), params=parameters, memory={"out": out})
    assert out.tolist() == [200, 0x04030201, 0x08070605, 0x0C0B0A09, 0x0403]


@pytest.mark.parametrize("generic", [False, True])
def test_a_peers_shared_memory_is_written_and_read(generic):
    out = torch.empty(128, dtype=torch.int32)
    mine = "mad.lo.u32 %r3,%t,4,%s; mad.lo.u32 %r4,%r1,1000,%t;\n"
    if generic:
        to = "cvt.u64.u32 %d3,%r3; cvta.shared.u64 %d3,%d3;\n"
        to += "mapa.u64 %d4,%d3,%r2; st.b32 [%d4],%r4;\n"
        back = "ld.b32 %r6,[%d3]; ld.b32 %r7,[%d4];\n"
    else:
        to = "mapa.shared::cluster.u32 %r5,%r3,%r2; st.shared::cluster.b32 [%r5],%r4;\n"
        back = "ld.shared.b32 %r6,[%r3]; ld.shared::cluster.b32 %r7,[%r5];\n"
    body = RANKS + mine + PEERS + to + PEERS + back + PEERS
    body += "mad.lo.u32 %r0,%r7,10000,%r6;\n" + OWN_STORE
    run(body, {"out": out}, grid=(4, 1, 1), cluster=(2, 1, 1), outputs="out")
    per_cta = [[10000 * (1000 * r + t) + 1000 * (1 - r) + t for t in range(32)] for r in (0, 1)]
    assert out.tolist() == 2 * (per_cta[0] + per_cta[1])


def folded(function):
    return lambda values: functools.reduce(function, values)


ATOMICS = {
    "add.u32": (lambda values: sum(values) & ALL, 0xFFFFFF00),
    "min.s32": (lambda values: min(s(v, 32) for v in values) & ALL, 5),
    "max.u32": (max, 5),
    "and.b32": (folded(operator.and_), ALL),
    "or.b32": (folded(operator.or_), 0),
    "xor.b32": (folded(operator.xor), 0),
}


@pytest.mark.parametrize("operation", ATOMICS)
@pytest.mark.parametrize("opcode", ["atom", "red"])
def test_atomics(opcode, operation):
    """64 threads of two CTAs on one word; `atom` also gives what was there before."""
    meaning, start = ATOMICS[operation]
    word = torch.tensor([s(start, 32)], dtype=torch.int32)
    before = torch.zeros(64, dtype=torch.int32)
    result = "%r0," if opcode == "atom" else ""
    body = (
        "mov.u32 %r0,0; mov.u32 %r5,%ctaid.x; mad.lo.u32 %r5,%r5,32,%t; mul.lo.u32 %r5,%r5,77777;\n"
    )
    body += "sub.u32 %r5,%r5,999999;\n"
    body += f"{opcode}.relaxed.gpu.global.{operation} {result}[%word],%r5;\n"
    run(body + OWN_STORE, {"word": word, "out": before}, grid=(2, 1, 1))
    values = [(i * 77777 - 999999) & ALL for i in range(64)]
    assert word.item() & ALL == meaning([start, *values])
    if opcode == "atom":
        assert start in [v & ALL for v in before.tolist()]


def test_atomic_exchange_and_compare():
    word, before = torch.tensor([100], dtype=torch.int32), torch.zeros(32, dtype=torch.int32)
    body = "add.u32 %r5,%t,101; add.u32 %r6,%t,100; atom.global.cas.b32 %r0,[%word],%r6,%r5;\n"
    run(body + STORE, {"word": word, "out": before})
    assert (word.item(), before.tolist()) == (132, list(range(100, 132)))
    run("atom.global.exch.b32 %r0,[%word],%t;\n" + STORE, {"word": word, "out": before})
    assert (word.item(), before.tolist()) == (31, [132, *range(31)])
    floating = torch.tensor([0.5])
    body = "mov.f32 %r5,0f3F800000; red.global.add.f32 [%floating],%r5;"
    run(body, {"floating": floating})
    assert floating.item() == 32.5


def test_special_registers():
    names = ["%tid.x", "%tid.y", "%tid.z", "%ctaid.x", "%ctaid.y", "%ctaid.z", "%laneid", "%warpid"]
    names += ["%cluster_ctaid.x", "%cluster_ctaid.y", "%cluster_ctarank", "%clusterid.x"]
    names += ["%clusterid.y", "%clusterid.z", "%ntid.x", "%ntid.z", "%nctaid.y", "%nclusterid.x"]
    names += ["%cluster_nctaid.y", "%cluster_nctarank"]
    block, grid, cluster = (8, 4, 3), (4, 6, 2), (2, 3, 1)
    out = torch.full((48 * 96, len(names)), -1, dtype=torch.int32)
    body = """mov.u32 %r1,%tid.z; mov.u32 %r2,%tid.y; mad.lo.u32 %r1,%r1,4,%r2;
    mad.lo.u32 %r1,%r1,8,%t;
    mov.u32 %r2,%ctaid.z; mov.u32 %r3,%ctaid.y; mad.lo.u32 %r2,%r2,6,%r3; mov.u32 %r3,%ctaid.x;
    mad.lo.u32 %r2,%r2,4,%r3; mad.lo.u32 %r1,%r2,96,%r1;\n"""
    body += f"mul.wide.u32 %d1,%r1,{4 * len(names)}; add.s64 %d1,%d1,%out;\n"
    for i, name in enumerate(names):
        body += f"mov.u32 %r0,{name}; st.global.b32 [%d1+{4 * i}],%r0;\n"
    run(body, {"out": out}, grid=grid, block=block, cluster=cluster, outputs="out")
    want = []
    for number in range(48):
        x, y, z = number % 4, number // 4 % 6, number // 24
        for thread in range(96):
            at = (thread % 8, thread // 8 % 4, thread // 32)
            own = [*at, x, y, z, thread % 32, thread // 32, x % 2, y % 3, x % 2 + 2 * (y % 3)]
            want.append([*own, x // 2, y // 3, z, 8, 3, 6, 2, 3, 6])
    assert out.tolist() == want


@pytest.mark.parametrize("count", [1, 2, 4])
def test_matrices_are_stored(count):
    """Lane l gives elements 2 (l % 4) and the next of row l / 4; row r of matrix i goes to the
    address that lane 8 i + r names, here row 31 - (8 i + r) of 16 bytes.
    """
    out = torch.zeros(32, 8, dtype=torch.int16)
    items = ",".join(f"%r{10 + i}" for i in range(count))
    body = "".join(
        f"mad.lo.u32 %r{10 + i},%t,0x20002,{0x10000 + 0x01000100 * i};\n" for i in range(count)
    )
    body += "sub.u32 %r1,31,%t; mad.lo.u32 %r1,%r1,16,%s; mad.lo.u32 %r2,%t,16,%s; mov.u32 %r5,0;\n"
    body += "st.shared.v4.b32 [%r1],{%r5,%r5,%r5,%r5};\n"
    body += f"stmatrix.sync.aligned.m8n8.x{count}.shared.b16 [%r1],{{{items}}};\n"
    body += (
        "ld.shared.v4.b32 {%r5,%r6,%r7,%r8},[%r2]; mul.wide.u32 %d1,%t,16; add.s64 %d1,%d1,%out;\n"
    )
    run(body + "st.global.v4.b32 [%d1],{%r5,%r6,%r7,%r8};", {"out": out}, outputs="out")
    want = np.zeros((32, 8), np.int16)
    for i in range(count):
        for r in range(8):
            want[31 - 8 * i - r] = [0x100 * i + 8 * r + column for column in range(8)]
    np.testing.assert_array_equal(out.numpy(), want)


@pytest.mark.parametrize("count", [1, 2, 8, 32])
def test_tensor_memory_lanes_are_threads(count):
    """32x32b: thread i of warp w has lane 32 w + i of each column."""
    out = torch.empty(128, count, dtype=torch.int32)
    body = ALLOCATE.format(group=1, columns=64) + fill_tmem(40)
    body += f"tcgen05.ld.sync.aligned.32x32b.x{count}.b32 {registers(50, count)}, [%r101+5];\n"
    body += (
        f"tcgen05.wait::ld.sync.aligned; mul.wide.u32 %d1,%t,{4 * count}; add.s64 %d1,%d1,%out;\n"
    )
    body += "".join(f"st.global.b32 [%d1+{4 * i}],%r{50 + i};\n" for i in range(count))
    run(body + FREE.format(group=1, columns=64), {"out": out}, block=128, outputs="out")
    assert out.tolist() == [[lane << 16 | 5 + c for c in range(count)] for lane in range(128)]


@pytest.mark.parametrize("half", [0, 16])
@pytest.mark.parametrize("count", [1, 4])
def test_tensor_memory_in_fragments_of_16_lanes(count, half):
    """16x256b: of each 8 columns, thread t has columns 2 (t % 4) and the next of lane t / 4, then
    of lane t / 4 + 8.
    """
    out = torch.empty(128, 4 * count, dtype=torch.int32)
    body = ALLOCATE.format(group=1, columns=64) + fill_tmem(40)
    body += f"add.u32 %r102,%r101,{(half << 16) + 3};\n"
    body += f"tcgen05.ld.sync.aligned.16x256b.x{count}.b32 {registers(50, 4 * count)}, [%r102];\n"
    body += (
        f"tcgen05.wait::ld.sync.aligned; mul.wide.u32 %d1,%t,{16 * count}; add.s64 %d1,%d1,%out;\n"
    )
    body += "".join(f"st.global.b32 [%d1+{4 * i}],%r{50 + i};\n" for i in range(4 * count))
    run(body + FREE.format(group=1, columns=64), {"out": out}, block=128, outputs="out")
    want = []
    for thread in range(128):
        lane, t = thread // 32 * 32 + half + thread % 32 // 4, thread % 4
        row = []
        for group in range(count):
            column = 3 + 8 * group + 2 * t
            row += [lane << 16 | column, lane << 16 | column + 1]
            row += [lane + 8 << 16 | column, lane + 8 << 16 | column + 1]
        want.append(row)
    assert out.tolist() == want


@pytest.mark.parametrize("delay", [0, 300])
def test_bulk_copies(delay):
    x = torch.arange(512, dtype=torch.int32).to(torch.uint8)
    out = torch.empty(512, dtype=torch.uint8)
    body = ONE + AT + READY + expect(512)
    body += f"@%q14 {LOAD_BYTES} [%r110], [%x], 512, [%s];\n"
    run(body + WAIT + COPY_OUT, {"x": x, "out": out}, outputs="out", delay=delay)
    assert out.tolist() == x.tolist()
    out = torch.full((160,), 255, dtype=torch.uint8)
    body = (
        ONE
        + AT
        + FILL
        + "@%q14 cp.async.bulk.global.shared::cta.bulk_group [%out+16], [%r110], 128;\n"
    )
    run(body + STORED, {"out": out}, delay=delay)
    assert out.tolist() == [255] * 16 + list(range(128)) + [255] * 16


@pytest.mark.parametrize("x, y", [(0, 0), (16, 3), (-16, -2), (32, 2), (64, 0), (0, 9)])
def test_boxes_are_loaded_with_zeros_outside(x, y):
    """A box of 32 x 4 bytes of a 48 x 5 matrix in rows of 64 bytes."""
    matrix = torch.arange(5 * 64).reshape(5, 64).to(torch.uint8)
    out = torch.empty(512, dtype=torch.uint8)
    maps = {"map": tensor_map(matrix, (32, 4), bits=8, sizes=(48, 5), strides=(64,))}
    body = ONE + AT + READY + expect(128) + f"mov.u32 %r1,{x}; mov.u32 %r2,{y};\n"
    body += "@%q14 cp.async.bulk.prefetch.tensor.2d.L2.global.tile [%map, {%r1, %r2}];\n"
    body += f"@%q14 {LOAD.format(2)}"
    body += (
        " [%r110], [%map, {%r1, %r2}], [%s];\n" + WAIT + "setp.lt.u32 %q12,%t,8; @!%q12 bra E;\n"
    )
    run(body + COPY_OUT + "E: ", {"x": matrix, "out": out[:128]}, maps, outputs="out", delay=50)
    whole = torch.zeros(64, 256, dtype=torch.uint8)
    whole[20:25, 64:112] = matrix[:, :48]
    assert out[:128].reshape(4, 32).tolist() == whole[20 + y : 24 + y, 64 + x : 96 + x].tolist()


@pytest.mark.parametrize("place", [0, 64, 32])
def test_a_tensor_map_may_be_in_global_memory(place):
    """The kernel gets its address; it must be a multiple of 64."""
    matrix, out = torch.arange(128, dtype=torch.int32).reshape(4, 32), torch.empty(512)
    room = torch.zeros(256, dtype=torch.uint8)
    start = -room.data_ptr() % 64 + place
    data = torch.frombuffer(bytearray(tensor_map(matrix, (32, 4))), dtype=torch.uint8)
    room[start : start + 128] = data
    memory = {"map": room[start:], "x": matrix, "out": out.view(torch.int32)}
    body = (
        ONE
        + AT
        + READY
        + expect(512)
        + f"@%q14 {LOAD.format(2)} [%r110], [%map, {{0, 0}}], [%s];\n"
    )
    body += WAIT + COPY_OUT
    if place % 64:
        with pytest.raises(Hazard) as raised:
            run(body, memory)
        assert raised.value.kind is Kind.MISALIGNED
    else:
        run(body, memory)
        assert torch.equal(memory["out"][:128], matrix.reshape(-1))


@pytest.mark.parametrize("x, y", [(0, 0), (16, 3), (-16, -2), (32, 2), (64, 0), (0, 9)])
def test_boxes_are_stored_inside_only(x, y):
    matrix = torch.full((5, 64), 255, dtype=torch.uint8)
    maps = {"map": tensor_map(matrix, (32, 4), bits=8, sizes=(48, 5), strides=(64,))}
    body = ONE + AT + FILL + f"mov.u32 %r1,{x}; mov.u32 %r2,{y};\n"
    body += (
        "@%q14 cp.async.bulk.tensor.2d.global.shared::cta.tile.bulk_group"
        " [%map, {%r1, %r2}], [%r110];\n"
    )
    run(body + STORED, {"x": matrix}, maps, delay=50)
    whole = torch.full((64, 256), 255, dtype=torch.uint8)
    whole[20 + y : 24 + y, 64 + x : 96 + x] = torch.arange(128).reshape(4, 32)
    want = torch.full((5, 64), 255, dtype=torch.uint8)
    want[:, :48] = whole[20:25, 64:112]
    assert matrix.tolist() == want.tolist()


@pytest.mark.parametrize("rank", [1, 3, 4, 5])
def test_boxes_of_every_rank(rank):
    """Words: the innermost dimension of 4, the others of 3; the box has 4 x 2 x 2 ... from 1 on."""
    shape = (3,) * (rank - 1) + (4,)
    data = torch.arange(math.prod(shape), dtype=torch.int32).reshape(shape)
    box = (4, *[2] * (rank - 1))
    size = 4 * math.prod(box)
    out = torch.empty(size, dtype=torch.uint8)
    at = ", ".join(["0", "1", "1", "1", "1"][:rank])
    body = ONE + AT + READY + expect(size)
    body += f"@%q14 {LOAD.format(rank)}"
    body += f" [%r110], [%map, {{{at}}}], [%s];\n" + WAIT
    body += f"setp.lt.u32 %q12,%t,{size // 16}; @!%q12 bra E;\n" + COPY_OUT + "E: "
    run(body, {"x": data, "out": out}, {"map": tensor_map(data, box)}, outputs="out")
    inner = data[(slice(1, 3),) * (rank - 1)]
    assert out.view(torch.int32).tolist() == inner.reshape(-1).tolist()


def test_a_load_is_multicast():
    x = torch.arange(64, dtype=torch.int32)
    out = torch.empty(4, 64, dtype=torch.int32)
    body = ONE + AT + RANKS + READY + expect(128) + PEERS
    body += "setp.eq.u32 %q12,%r1,1; and.pred %q11,%q12,%q14; mov.u16 %h1,13; mov.u32 %r9,32;\n"
    load = LOAD.format(1).replace("shared::cta", "shared::cluster")
    body += f"@%q11 {load}.multicast::cluster [%r110], [%map, {{%r9}}], [%s], %h1;\n"
    body += f"mov.u32 %r9,0; @%q11 {load} [%r110], [%map, {{%r9}}], [%s];\n" + WAIT
    body += "mad.lo.u32 %r3,%t,4,%r110; ld.shared.b32 %r0,[%r3];\n" + PEERS + OWN_STORE
    maps = {"map": tensor_map(x, (32,))}
    out = torch.empty(4, 32, dtype=torch.int32)
    run(body, {"x": x, "out": out}, maps, (4, 1, 1), cluster=(4, 1, 1), outputs="out", delay=100)
    own, sent = list(range(32)), list(range(32, 64))
    assert out.tolist() == [sent, own, sent, sent]
