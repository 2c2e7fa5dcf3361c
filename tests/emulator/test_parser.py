"""How the emulator reads PTX, and what it says of what it does not know."""

import pytest
from emulated_ptx import (
    kernel,
    run,
)
from emulated_values import (
    in_lanes,
)

from nvfp4.emulator import Hazard, Kind, UnsupportedInstruction, execute


def test_names_in_blocks_are_their_own():
    body = """
    mov.u32 %r0,0; { .reg .b32 %x; .reg .pred P1; mov.u32 %x,5; LAB: add.u32 %r0,%r0,%x;
    setp.lt.u32 P1,%r0,50; @P1 bra LAB; bra DONE; add.u32 %r0,%r0,1000000; DONE: }
    { .reg .b16 %x; .reg .b32 P1; mov.u16 %x,7; cvt.u32.u16 P1,%x; LAB: add.u32 %r0,%r0,P1;
    { .reg .b32 P1; mov.u32 P1,1000; add.u32 %r0,%r0,P1; } add.u32 %r0,%r0,P1; bra OUT; }
    mov.u32 %r0,0; OUT: /* a comment; { with a brace */ // and ; another }
    """
    assert in_lanes(body) == [50 + 7 + 1000 + 7] * 32


def test_operands_of_every_form():
    body = """
    mov.u32 %r1,smem; add.u32 %r2,%r1,16; .pragma "nounroll"; mov.u32 %r0,0x10U;
    st.shared.b32 [%r2+-8],%r0; st.shared.b32 [ %r2 - 4 ],-1; ld.shared.b32 %r3,[smem+8];
    ld.shared.v2.b32 {%r4,_},[smem+8]; mov.b32 %r6,smem+12; ld.shared.b32 %r5,[%r6];
    mov.f32 %r7,0f40000000; cvt.rzi.u32.f32 %r7,%r7; mov.b64 %d0,0d4008000000000000;
    cvt.rzi.u32.f64 %r8,%d0; add.u32 %r0,%r3,%r4; add.u32 %r0,%r0,%r5; mad.lo.u32 %r0,%r7,100,%r0;
    mad.lo.u32 %r0,%r8,1000,%r0;
    """
    assert in_lanes(body) == [16 + 16 - 1 + 200 + 3000] * 32


@pytest.mark.parametrize(
    "line, why",
    [
        ("frobnicate.b32 %r0,%r1;", "not known"),
        ("add.cc.u32 %r0,%r1,%r2;", ".cc"),
        ("add.rz.f32 %r0,%r1,%r2;", ".rz"),
        ("add.u32 %r0,%r1,%nowhere;", "%nowhere"),
        ("add.u32 %r0,%r1,1.5;", "decimal"),
        ("add.u32 %r0,%r1,?;", "[?]"),
        ("add.u32 %r0,%r1;", "operands"),
        ("max.f64 %d0,%d1,%d2,%d3;", "operands"),
        ("bra NOWHERE;", "NOWHERE"),
        ("@%nowhere mov.u32 %r0,1;", "%nowhere"),
        ("ld.shared.b128 %r0,[%s];", "128"),
        ("tcgen05.shift.cta_group::1.down [%r0];", "shift"),
        ("cp.async.cs.shared.global [%s],[%d0],16;", "cs"),
        (".local .b32 x;", "directive"),
    ],
)
def test_what_is_not_known_is_named_with_its_line(line, why):
    text = kernel("\n\n" + line)
    number = text[: text.index(line)].count("\n") + 1
    with pytest.raises(UnsupportedInstruction, match=why) as raised:
        execute(text, "k", (1, 1, 1), (32, 1, 1))
    assert raised.value.line == number
    assert f"line {number}: " in str(raised.value) and line.split()[0] in str(raised.value)


def test_a_kernel_that_is_not_there_is_an_error():
    with pytest.raises(KeyError, match="no kernel other .* it has k"):
        execute(kernel(""), "other", (1, 1, 1), (32, 1, 1))


@pytest.mark.parametrize("register", ["%r5", "%d5", "%h5"])
@pytest.mark.parametrize("opcode", ["add.u", "mov.u", "mul.lo.u", "shl.b", "neg.s"])
def test_registers_are_written_before_they_are_read(register, opcode):
    bits = {"r": 32, "d": 64, "h": 16}[register[1]]
    one = opcode[:3] in ("mov", "neg")
    text = f"{opcode}{bits} %{register[1]}6,{register}{'' if one else ',1'};"
    with pytest.raises(Hazard, match="register") as raised:
        run(text)
    assert raised.value.kind is Kind.UNINITIALISED and raised.value.text == text[:-1]
    run(f"mov.b{bits} {register},1;\n{text}")
