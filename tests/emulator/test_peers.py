"""The emulator on code that is not ours: NVIDIA's dense block-scaled GEMM of the package
nvidia-cutlass-operators. What is right there must pass to the bit, and what is wrong be found.

Its class releases the accumulator of a tile of N = 256 by one lane of each epilogue warp, at a
barrier that was initialised for every thread: it never ends.
"""

import re
from functools import cache
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import NamedTuple

import pytest
import torch
from cases import Shape, same_bits
from torch import Tensor

import nvfp4
from nvfp4.backends.reference.mm import mm as reference_mm
from nvfp4.bench.peers import cutlass_operators
from nvfp4.calls import Mm
from nvfp4.dispatch.explain import explain
from nvfp4.emulator import Deadlock, Hazard, Kind, Options, load

# The package's own, of its use of the DSL.
pytestmark = pytest.mark.filterwarnings("ignore::DeprecationWarning")

NAME = "peer"


class Config(NamedTuple):
    rows: int
    columns: int
    cluster: tuple[int, int]

    def __str__(self) -> str:
        return f"{self.rows}x{self.columns} cluster {self.cluster[0]}x{self.cluster[1]}"

    @property
    def cluster_tile(self) -> tuple[int, int]:
        return 128 * self.cluster[0], self.columns * self.cluster[1]


RIGHT = [
    Config(128, 64, (1, 1)),
    Config(128, 128, (1, 1)),
    Config(128, 192, (1, 1)),
    Config(256, 64, (2, 1)),
    Config(256, 128, (2, 1)),
    Config(256, 192, (2, 1)),
    Config(128, 128, (2, 2)),
    Config(256, 128, (2, 2)),
]
WRONG = [Config(128, 256, (1, 1)), Config(256, 256, (2, 1))]


@pytest.fixture(autouse=True)
def _needs_emulation_and_the_package() -> None:
    reasons = cutlass_operators.needs()
    for verdict in explain("mm", "cpu", backend="cutedsl").stages[0].verdicts:
        if verdict.backend == "cutedsl" and verdict.reasons:
            reasons.append(f"cutedsl: {verdict}")
    if reasons:
        pytest.skip("; ".join(reasons))


class Code(NamedTuple):
    object_code: bytes
    ptx: str


@cache
def compiled(config: Config) -> Code:
    """NVFP4 x NVFP4 to bfloat16, for one cluster, which takes all tiles; callable with addresses of
    A, B, their scales and the output, then M, N, K and the stream.
    """
    import cutlass
    from cutlass import Int32, cute
    from cutlass.cute.nvgpu.common import OperandMajorMode
    from cutlass.cute.runtime import make_fake_stream, make_ptr
    from cutlass.operators.providers.cutedsl.gemm.implementations import (
        sm100_dense_blockscaled_static_persistent_impl as implementations,
    )

    k_major, row_major = OperandMajorMode.K, cutlass.tensor_utils.LayoutEnum.ROW_MAJOR
    clusters = 1
    kernel = implementations.PersistentDenseBlockScaledGemmKernel(
        16, (config.rows, config.columns), config.cluster
    )

    @cute.jit
    def gemm(
        a: cute.Pointer, b: cute.Pointer, a_scales: cute.Pointer, b_scales: cute.Pointer,
        out: cute.Pointer, m: Int32, n: Int32, k: Int32, stream,
    ):  # fmt: skip
        layouts, sizes = (k_major, k_major, row_major), (m, n, k, Int32(1))
        kernel(a, b, a_scales, b_scales, out, layouts, sizes, clusters, stream, lambda x: x)

    def pointer(dtype: type, align: int) -> cute.Pointer:
        return make_ptr(dtype, align, cute.AddressSpace.gmem, assumed_align=align)

    data, scales = cutlass.Float4E2M1FN, cutlass.Float8E4M3FN
    pointers = [(data, 16), (data, 16), (scales, 32), (scales, 32), (cutlass.BFloat16, 16)]
    with TemporaryDirectory() as folder:
        function = cute.compile(
            gemm,
            *(pointer(*each) for each in pointers),
            *[Int32(1)] * 3,
            make_fake_stream(),
            options=f"--enable-tvm-ffi --gpu-arch sm_100a --keep-ptx --dump-dir {folder}",
        )
        path = Path(folder) / "kernel.o"
        function.export_to_c(object_file_path=str(path), function_name=NAME)
        ptx = function.artifacts.PTX  # text or, once dumped, a path
        return Code(path.read_bytes(), ptx if "\n" in ptx else Path(ptx).read_text())


def two_by_two(config: Config) -> Shape:
    """Ragged, four tiles for the cluster, three stages of K."""
    rows, columns = config.cluster_tile
    return Shape(rows + 72, columns + 32, 544)


def run(code: Code, shape: Shape, options: Options) -> tuple[Tensor, Tensor]:
    """(what came out, what the reference says). Every sum is exact in float32, in any order."""

    def operand(rows: int) -> tuple[Tensor, Tensor]:
        data = torch.randint(0, 256, (rows, shape.k // 2), dtype=torch.uint8)
        scales = torch.tensor([0.5, 1.0, 2.0])[torch.randint(0, 3, (rows, shape.k // 16))]
        return data, nvfp4.swizzle_scales(scales.to(torch.float8_e4m3fn)).view(torch.uint8)

    (a, a_scales), (b, b_scales) = operand(shape.m), operand(shape.n)
    out, want = torch.empty(2, shape.m, shape.n, dtype=torch.bfloat16)
    swizzled = [scales.view(torch.float8_e4m3fn) for scales in (a_scales, b_scales)]
    reference_mm(Mm(a, b, *swizzled, torch.ones(1, 1)), want)
    memory = {"a": a, "b": b, "a_scales": a_scales, "b_scales": b_scales, "out": out}
    addresses = (tensor.data_ptr() for tensor in memory.values())
    stream = 0
    load(code.object_code, NAME, code.ptx)(
        *addresses, shape.m, shape.n, shape.k, stream, memory=memory, options=options
    )
    return out, want


def scheduled(seed: int, delay: int) -> Options:
    """CUTLASS leaves tcgen05.wait::ld to ptxas, tcgen05.fence out, and stores by whole warps."""
    outputs = frozenset({"out"})
    relied_on = {"tmem_load_waits": False, "tcgen05_fences": False, "one_lane_stores": False}
    return Options(seed, delay, outputs, max_steps=5_000_000, **relied_on)


@pytest.mark.parametrize("config", RIGHT, ids=str)
def test_right_tiles_pass_to_the_bit(config):
    seed, delay = ((0, 0), (1, 300))[RIGHT.index(config) % 2]
    same_bits(*run(compiled(config), two_by_two(config), scheduled(seed, delay)))


@pytest.mark.parametrize("config", WRONG, ids=str)
def test_the_deadlock_of_256_columns_is_found(config):
    """The MMA warp (warp 4) waits for the first accumulator, so the epilogue for the second."""
    with pytest.raises(Deadlock) as error:
        run(compiled(config), two_by_two(config), scheduled(0, 300))
    waiting = error.value.waiting
    assert all("mbarrier.try_wait" in line for line in waiting)
    for warp in range(5):
        assert any(f"CTA (0, 0, 0) warp {warp}:" in line for line in waiting)


@pytest.mark.parametrize("config", WRONG, ids=str)
def test_one_tile_of_256_columns_does_not_end_either(config):
    """The MMA warp waits before it ends for its accumulator to be read."""
    rows, columns = config.cluster_tile
    with pytest.raises(Deadlock) as error:
        run(compiled(config), Shape(rows - 24, columns - 32, 544), scheduled(0, 300))
    assert ["warp 4:" in line for line in error.value.waiting] == [True]


@pytest.mark.parametrize("config", WRONG, ids=str)
def test_256_columns_are_right_once_the_barrier_counts_warps(config):
    """That count is the fault, and the only one: nothing else is changed."""
    threads = 128 * (config.rows // 128)
    code = compiled(config)
    ptx, count = re.subn(
        rf"mov\.b32(\s+(%r\d+)), {threads};(\s+mbarrier\.init\.\S+\s+\[[^]]*\], \2;)",
        rf"mov.b32\1, {threads // 32};\3",
        code.ptx,
    )
    assert count == 1
    same_bits(*run(code._replace(ptx=ptx), two_by_two(config), scheduled(0, 300)))


def test_a_load_without_its_wait_is_found_unless_allowed():
    """By PTX ISA the kernel is wrong: the registers have no value before tcgen05.wait::ld."""
    code, shape = compiled(RIGHT[0]), two_by_two(RIGHT[0])
    assert "tcgen05.ld" in code.ptx and "tcgen05.wait::ld" not in code.ptx
    with pytest.raises(Hazard) as error:
        run(code, shape, Options(outputs=frozenset({"out"})))
    assert error.value.kind == Kind.EARLY_READ
