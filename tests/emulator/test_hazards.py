"""Each class of fault that the emulator looks for: a small kernel that is right, and an edit of it
that brings the fault in.
"""

import re
from typing import Any

import pytest
import torch
from emulated_ptx import (
    AT,
    ONE,
    READY,
    STORE,
    WAIT,
    expect,
    kernel,
    run,
    tensor_map,
)
from memory_faults import MEMORY_FAULTS
from order_faults import ORDER_FAULTS
from right_kernels import BOX, LOADED, PUT, TMEM

from nvfp4.emulator import Deadlock, Hazard, Kind

FAULTS = [*MEMORY_FAULTS, *ORDER_FAULTS]


def launch(body: str, options: dict[str, Any]) -> None:
    """Runs a kernel over x and out, of 32 rows of 128 bytes; the maps' boxes have 4 of x's rows."""
    x = torch.arange(1024, dtype=torch.int32).reshape(32, 32)
    out = torch.zeros(32, 32, dtype=torch.int32)
    maps = {
        "map": tensor_map(x, (32, 4)),
        "wrong_map": tensor_map(x, (32, 4), sizes=(32, 64), strides=(128,)),
        "no_map": bytes(128),
        "nibbles": tensor_map(x, (32, 4), bits=4, sizes=(256, 32), strides=(128,)),
    }
    run(body, {"x": x, "out": out}, maps, **options)


def line_of(body: str, part: str) -> list[int]:
    memory = {name: torch.empty(0) for name in ("x", "out")}
    maps = dict.fromkeys(("map", "wrong_map", "no_map", "nibbles"), b"")
    lines = kernel(body, memory, maps).splitlines()
    return [number for number, line in enumerate(lines, 1) if part in line]


@pytest.mark.parametrize("fault", FAULTS, ids=lambda f: f"{f.kind.value}: {f.id}")
def test_a_fault_is_found_and_only_where_it_is(fault):
    """Whatever the order that the scheduler takes; only what it is called may depend on that."""
    named: list[Hazard] = []
    for seed in range(32):
        launch(fault.body, {**fault.options, "seed": seed})
        try:
            launch(fault.edited, {**fault.options, "seed": seed})
        except Hazard as hazard:
            if hazard.kind is fault.kind and re.search(fault.says, hazard.message):
                named.append(hazard)
        else:
            assert fault.sometimes, f"not found with seed {seed}"
        if seed >= 3 and named:
            break
    assert named, f"with no seed a hazard of the kind {fault.kind.value} that says {fault.says}"
    if fault.at:
        lines = line_of(fault.edited, fault.at.strip())
        assert all(hazard.line in lines for hazard in named), named[0]


@pytest.mark.parametrize("seed", range(8))
def test_a_flag_between_ctas_is_released_and_acquired(seed):
    """CTA 0 writes and raises a flag; CTA 1 waits for it and reads."""
    body = """mov.u32 %r5,%ctaid.x; setp.eq.u32 %q0,%r5,0; @%q0 bra WRITER; mov.u32 %r0,0;
    POLL: ld.acquire.gpu.global.b32 %r6,[%flag]; setp.eq.u32 %q1,%r6,0; @%q1 bra POLL;
    ld.global.b32 %r0,[%x]; st.global.b32 [%out],%r0; bra E;
    WRITER: mov.u32 %r0,5; mov.u32 %r6,1; st.global.b32 [%x],%r0;
    st.release.gpu.global.b32 [%flag],%r6; E:"""
    memory = {name: torch.zeros(1, dtype=torch.int32) for name in ("x", "flag", "out")}
    run(body, memory, grid=(2, 1, 1), seed=seed)
    assert memory["out"].item() == 5
    for order in ("acquire", "release"):
        memory = {name: torch.zeros(1, dtype=torch.int32) for name in ("x", "flag", "out")}
        with pytest.raises(Hazard, match="x is read where CTA 0 has written") as raised:
            run(body.replace(order, "relaxed"), memory, grid=(2, 1, 1), seed=seed)
        assert raised.value.kind is Kind.RACE


def test_outputs_are_written_before_they_are_read():
    body = "mov.u32 %r0,%t;\n" + STORE + "ld.global.b32 %r5,[%d1];\n"
    run(body, {"out": torch.zeros(32, dtype=torch.int32)}, outputs="out")
    out = torch.zeros(64, dtype=torch.int32)
    run(body.replace("[%d1];", "[%d1+128];"), {"out": out})  # it is not declared an output
    with pytest.raises(Hazard, match="out is an output") as raised:
        run(body.replace("[%d1];", "[%d1+128];"), {"out": out}, outputs="out")
    assert raised.value.kind is Kind.UNINITIALISED
    with pytest.raises(Hazard, match="out is an output") as raised:
        run("ld.global.b32 %r5,[%out];", {"out": out}, outputs="out")
    assert raised.value.kind is Kind.UNINITIALISED
    maps = {"map": tensor_map(out.reshape(2, 32), (32, 4))}
    load = ONE + AT + READY + expect(512) + BOX + WAIT
    run(load, {"out": out}, maps)
    with pytest.raises(Hazard, match="out is an output") as raised:
        run(load, {"out": out}, maps, outputs="out")
    assert raised.value.kind is Kind.UNINITIALISED and "cp.async" in raised.value.text


@pytest.mark.parametrize("left", [0, 1, 63])
def test_outputs_are_written_whole(left):
    body = f"setp.eq.u32 %q0,%t,{left}; @%q0 bra E; mov.u32 %r0,%t;\n" + STORE + "E: "
    out = torch.zeros(64, dtype=torch.int32)
    run(body.replace("@%q0 bra E;", ""), {"out": out}, block=64, outputs="out")
    with pytest.raises(Hazard, match=f"4 of 256 bytes of out .* byte {4 * left}$") as raised:
        run(body, {"out": out}, block=64, outputs="out")
    assert raised.value.kind is Kind.UNWRITTEN
    with pytest.raises(Hazard, match="256 of 256 bytes of out") as raised:
        run("", {"out": out}, outputs="out")
    assert raised.value.kind is Kind.UNWRITTEN


def test_a_deadlock_names_where_each_warp_waits():
    body = ONE + READY + "setp.lt.u32 %q0,%t,32; @%q0 bra A;\nsetp.lt.u32 %q0,%t,64; @%q0 bra B;\n"
    body += "bra E;\nA:\n" + WAIT + "bra E;\nB:\nbar.sync 1,64;\nE:\n"
    with pytest.raises(Deadlock, match="nothing is in flight") as raised:
        launch(body, {"block": 96})
    first, second = sorted(raised.value.waiting)
    (wait,), (bar,) = line_of(body, "try_wait"), line_of(body, "bar.sync 1,64")
    assert first.startswith(f"CTA (0, 0, 0) warp 0: line {wait}: mbarrier.try_wait.parity")
    assert second.startswith(f"CTA (0, 0, 0) warp 1: line {bar}: bar.sync 1,64")
    assert first in str(raised.value) and second in str(raised.value)
    arrive = "@%q14 mbarrier.arrive.shared.b64 _,[%s];\n"
    launch(body.replace("A:\n", "A:\n" + arrive).replace("1,64", "1,32"), {"block": 96})


def test_constants_may_be_loaded_before_griddepcontrol_wait():
    """Only bulk copies may load them, and only if they are named as constants."""
    x = torch.arange(1024, dtype=torch.int32).reshape(32, 32)
    maps = {"map": tensor_map(x, (32, 4))}
    body = ONE + AT + READY + expect(512) + BOX + WAIT + "griddepcontrol.wait;\n"
    run(body, {"x": x}, maps, constants=frozenset({"x"}))
    run(body.replace("{0, 0}", "{0, 32}"), {"x": x}, maps)  # beyond the end, nothing is read
    for text, constants in ((body, frozenset({"y"})), ("ld.global.b32 %r0,[%x];" + body, {"x"})):
        with pytest.raises(Hazard) as raised:
            run(text, {"x": x}, maps, constants=constants)
        assert raised.value.kind is Kind.GRID_DEPENDENCY


def test_a_loop_without_end_is_given_up():
    with pytest.raises(Deadlock, match="still running after 10") as raised:
        launch("L: mov.u32 %r0,1; bra L;\n", {"max_steps": 1000})
    assert "CTA (0, 0, 0) warp 0: line" in raised.value.waiting[0]


def test_a_hazard_says_where_it_is():
    body = "\n\nld.global.b32 %r0,[%x+4096];\n"
    with pytest.raises(Hazard) as raised:
        launch(body, {"grid": (3, 1, 1)})
    hazard = raised.value
    assert [hazard.line] == line_of(body, "%x+4096")
    assert hazard.text == "ld.global.b32 %r0,[%x+4096]"
    assert str(hazard).endswith(f"PTX line {hazard.line}: {hazard.text}\n  {hazard.where}")
    assert hazard.where in [f"CTA ({i}, 0, 0) warp 0" for i in range(3)]


def test_nothing_is_checked_if_so_asked():
    launch(PUT.replace("fence.proxy.async.shared::cta;", ""), {"check": False})
    launch(TMEM.replace(LOADED, ""), {"check": False})
    launch(TMEM.replace(LOADED, ""), {"tmem_load_waits": False})
