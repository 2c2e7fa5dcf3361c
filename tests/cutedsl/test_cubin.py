"""What bench/cubin.py reads from kernels whose loops, waits and spills are known: they
are written here in PTX and compiled for sm_100a.
"""

import re
import subprocess
from pathlib import Path

import pytest
import triton

from nvfp4.bench import cubin

pytestmark = pytest.mark.usefixtures("compiles")

PTXAS = Path(triton.__file__).parent / "backends" / "nvidia" / "bin" / "ptxas"
HEAD = """
.version 8.7
.target sm_100a
.address_size 64
.extern .shared .align 1024 .b8 smem[];
"""
KERNEL = """
.visible .entry {name}(.param .u64 p, .param .u32 n, .param .u64 d) {{
.reg .u64 %p, %d, %x; .reg .b32 %n, %i, %j, %t, %s, %a; .reg .b32 %r<128>; .reg .pred %q, %w;
ld.param.u64 %p, [p]; ld.param.u32 %n, [n]; ld.param.u64 %d, [d];
mov.u32 %t, %tid.x; mov.u32 %s, smem; mov.u32 %a, 0; mov.u32 %j, 0;
{body}
ret;
}}
"""
STORE = "st.volatile.global.b32 [%p], %i;\n"


def ptxas(tmp_path: Path, *bodies: str, options: tuple[str, ...] = ()) -> tuple[bytes, str]:
    """A cubin with a kernel for each body, and what ptxas says of it."""
    source, out = tmp_path / "kernel.ptx", tmp_path / "kernel.cubin"
    kernels = (KERNEL.format(name=f"kernel_{i}", body=body) for i, body in enumerate(bodies))
    source.write_text(HEAD + "".join(kernels))
    done = subprocess.run(
        [PTXAS, "-v", "-arch=sm_100a", *options, source, "-o", out], capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
    return out.read_bytes(), done.stderr


def loop(counter: str, label: str, body: str) -> str:
    """`body` n times over, by a loop that stays one."""
    return (
        f'mov.u32 {counter}, 0;\n{label}:\n.pragma "nounroll";\n{body}'
        f"add.u32 {counter}, {counter}, 1; setp.lt.u32 %q, {counter}, %n; @%q bra {label};\n"
    )


def wait(parity: str) -> str:
    return (
        f"{{ WAIT: mbarrier.try_wait.parity.shared.b64 %w, [%s], {parity};\n"
        "@%w bra DONE; bra WAIT; DONE: }\n"
    )


def span(instructions: list[cubin.Instruction], found: cubin.Loop) -> int:
    """Instructions from a loop's first to its last branch back, in order of addresses."""
    last = max(i.address for i in instructions if i.target == found.start)
    return (last - found.start) // 16 + 1


@pytest.mark.parametrize("registers", [24, 255])
def test_resources_are_what_ptxas_says(tmp_path, registers):
    live = range(96)
    body = "".join(f"ld.volatile.global.b32 %r{i}, [%p+{4 * i}];" for i in live)
    body += "".join(f"st.volatile.global.b32 [%p+{4 * i}], %r{i};" for i in reversed(live))
    data, said = ptxas(tmp_path, body, options=(f"--maxrregcount={registers}",))
    found = cubin.resources(data)
    stack, stores, loads = map(
        int, re.findall(r"(\d+) bytes (?:stack frame|spill stores|spill loads)", said)
    )
    assert found.registers == int(re.search(r"Used (\d+) registers", said)[1])
    assert (found.stack, 4 * found.spill_stores, 4 * found.spill_loads) == (stack, stores, loads)
    assert (found.spill_stores > 0) == (registers == 24)


def test_static_shared_memory_is_read(tmp_path):
    body = ".shared .b32 own[1024]; st.volatile.shared.b32 [own], %n; ld.volatile.shared.b32 %a,"
    data, _ = ptxas(tmp_path, body + "[own+4]; st.global.b32 [%p], %a;", STORE)
    own, none = (cubin.resources(data, f"kernel_{i}").static_shared for i in (0, 1))
    assert own - none == 4096


def test_a_loop_counts_its_own_instructions_and_not_its_inner_loops(tmp_path):
    body = loop("%i", "OUTER", STORE + loop("%j", "INNER", 3 * STORE) + STORE)
    instructions = cubin.sass(ptxas(tmp_path, body)[0])
    outer, inner = cubin.loops(instructions)
    assert (outer.depth, inner.depth) == (0, 1)
    assert (outer.count("STG"), inner.count("STG")) == (2, 3)
    assert outer.inner == (inner,)
    assert len(inner.instructions) == span(instructions, inner)
    assert len(outer.instructions) == span(instructions, outer) - len(inner.instructions)


@pytest.mark.parametrize("first, second", [(8, 16), (16, 8)])
def test_the_longer_of_two_ways_counts(tmp_path, first, second):
    body = "and.b32 %a, %i, 1; setp.eq.u32 %w, %a, 0; @%w bra B;\n"
    body += f"{first * STORE} bra C; B: {second * STORE.replace('.b32 [%p], %i', '.b64 [%p], %d')}"
    body += "C: membar.gl;\n"
    (found,) = cubin.loops(cubin.sass(ptxas(tmp_path, loop("%i", "A", body))[0]))
    wide = found.count("STG.E.64")
    assert (found.count("STG") - wide, wide) == ((16, 0) if first == 16 else (0, 16))
    assert found.count("MEMBAR") == 1


# Whether ptxas leaves a wait in line or moves its later tries to the kernel's end depends on these.
@pytest.mark.parametrize("parity", ["%t", "%n", "%n, 10000000"])
@pytest.mark.parametrize("peek", [False, True])
def test_a_wait_counts_once_in_the_loop_around_it(tmp_path, parity, peek):
    held = wait(parity)
    if peek:  # a condition that skips the wait, as where an earlier try has succeeded
        held = f"and.b32 %a, %i, 3; setp.eq.u32 %w, %a, 0; @%w bra SKIP;\n{held}SKIP:\n"
    instructions = cubin.sass(ptxas(tmp_path, loop("%i", "A", held + STORE))[0])
    (found,) = cubin.loops(instructions)
    assert found.count("SYNCS.PHASECHK") > 0
    assert len(found.instructions) == span(instructions, found)


MMA = """
setp.ne.u32 %q, %j, 0;
{guard} tcgen05.mma.cta_group::1.kind::mxf4nvf4.block_scale.scale_vec::4X
    [%n], %d, %d, %n, [%n], [%n], %q;
"""


# Around an instruction that only one lane should issue, ptxas puts a loop over the lanes unless it
# sees that one is elected.
@pytest.mark.parametrize("elected", [True, False])
@pytest.mark.parametrize("steps", [1, 2])
def test_the_mma_loop_is_counted_for_256_of_k(tmp_path, steps, elected):
    mma = MMA.format(guard="elect.sync _|%w, -1; @%w" if elected else "")
    k_loop = loop("%j", "K", wait("%n") + 4 * steps * mma)
    instructions = cubin.sass(
        ptxas(tmp_path, loop("%i", "TILES", k_loop + loop("%j", "REST", mma)))[0]
    )
    assert any(i.is_a("BRA.U.ANY") for i in instructions) != elected
    found = cubin.mma_loop(instructions)
    assert found.loop.count(cubin.MMA) == 4 * steps
    assert found.steps == steps
    assert found.sass == span(instructions, found.loop) / steps
    assert cubin.mma_loop(instructions, 8).sass == 2 * found.sass


LOAD = (
    "cp.async.bulk.tensor.3d.shared::cta.global.tile.mbarrier::complete_tx::bytes"
    " [%s], [%d, {%n, %n, %n}], [%s];\n"
)


@pytest.mark.parametrize("space", ["shared", "release.cluster.shared::cluster"])
@pytest.mark.parametrize("loads, stages", [(4, 1), (4, 2), (2, 1)])
def test_the_tma_loop_is_counted_by_stages(tmp_path, loads, stages, space):
    arrive = f"mbarrier.arrive.expect_tx.{space}.b64 _, [%s], %n;\n"
    other = f"mbarrier.arrive.{space}.b64 _, [%s+8];\n"
    k_loop = loop("%j", "K", stages * (wait("%n") + arrive + loads * LOAD + other))
    instructions = cubin.sass(ptxas(tmp_path, loop("%i", "TILES", k_loop))[0])
    found = cubin.tma_loop(instructions)
    assert found.loop.count(cubin.TMA_LOAD) == loads * stages
    assert found.steps == stages
    assert found.sass == span(instructions, found.loop) / stages
    assert cubin.tma_loop(instructions, stage_k=512).sass == found.sass / 2


def load_tmem(shape: str, registers: int) -> str:
    names = ", ".join(f"%r{i}" for i in range(registers))
    half = ", 8" if shape.startswith("16x32bx2") else ""
    stores = "".join(f"st.volatile.global.b32 [%p], %r{i};\n" for i in range(registers))
    return (
        f"tcgen05.ld.sync.aligned.{shape}.b32 {{{names}}}, [%t]{half};\n"
        f"tcgen05.wait::ld.sync.aligned;\n{stores}"
    )


@pytest.mark.parametrize(
    "shape, registers, elements",
    [
        ("32x32b.x1", 1, 1),
        ("32x32b.x32", 32, 32),
        ("16x64b.x8", 8, 8),
        ("16x128b.x4", 8, 8),
        ("16x256b.x4", 16, 16),
        ("16x32bx2.x8", 8, 8),
        ("32x32b.x8.pack::16b", 8, 16),
    ],
)
def test_the_epilogue_is_counted_by_the_elements_loaded(tmp_path, shape, registers, elements):
    subtiles = loop("%j", "SUBTILES", load_tmem(shape, registers))
    instructions = cubin.sass(ptxas(tmp_path, loop("%i", "TILES", STORE + subtiles))[0])
    tiles, inner = cubin.loops(instructions)
    per_pass, own = span(instructions, inner), span(instructions, tiles) - span(instructions, inner)
    found = cubin.epilogue_per_element(instructions, 4 * elements)
    assert found.loop == per_pass / elements
    assert found.tile == (own + 4 * per_pass) / (4 * elements)


def test_an_epilogue_without_a_loop_over_subtiles_or_over_tiles(tmp_path):
    load = load_tmem("32x32b.x16", 16)
    unrolled, one_tile = (loop("%i", "A", body) for body in (STORE + 2 * load, load))
    data, _ = ptxas(tmp_path, unrolled, one_tile)
    tiles = cubin.epilogue_per_element(cubin.sass(data, "kernel_0"), 32)
    assert tiles.loop == tiles.tile
    assert cubin.epilogue_per_element(cubin.sass(data, "kernel_1"), 64).tile is None


def test_elements_that_the_loop_cannot_load_are_an_error(tmp_path):
    subtiles = loop("%j", "SUBTILES", load_tmem("32x32b.x32", 32))
    instructions = cubin.sass(ptxas(tmp_path, loop("%i", "TILES", subtiles + STORE))[0])
    with pytest.raises(ValueError, match="elements: needs .* got 48"):
        cubin.epilogue_per_element(instructions, 48)


def test_what_cannot_be_read_is_an_error(tmp_path):
    data, _ = ptxas(tmp_path, STORE, loop("%i", "A", STORE))
    assert len(cubin.loops(cubin.sass(data, "kernel_1"))) == 1
    assert cubin.loops(cubin.sass(data, "kernel_0")) == []
    assert re.search(r"ptxas, .* release \d+\.\d+", cubin.toolchain(data))
    with pytest.raises(ValueError, match="kernel: needs the one of .* got 2"):
        cubin.sass(data)
    with pytest.raises(ValueError, match="nvdisasm: needs a cubin"):
        cubin.sass(b"not a cubin")
    for read in (cubin.mma_loop, cubin.tma_loop):
        with pytest.raises(ValueError, match="needs a loop with"):
            read(cubin.sass(data, "kernel_1"))
