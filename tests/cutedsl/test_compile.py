"""Compiled for sm_100a: what ptxas made of the kernels, and the cache that keeps them."""

import zipfile
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
import torch
from tile_problems import ALL, kernel_of

import nvfp4
from nvfp4.backends import cutedsl, environment
from nvfp4.backends.cutedsl.gemm.choose import SPLIT, TILES
from nvfp4.backends.cutedsl.gemm.config import Alpha, Epilogue, Kernel, Tile
from nvfp4.backends.cutedsl.gemm.launch import function_on, loadable
from nvfp4.backends.cutedsl.runtime import cache
from nvfp4.backends.cutedsl.runtime import compile as compiler
from nvfp4.backends.cutedsl.runtime.compile import Compiled, cache_key, compiled, is_cached
from nvfp4.backends.problem import Problem
from nvfp4.backends.target import Target
from nvfp4.bench import cubin

REASONS = cutedsl.BACKEND.reasons(Problem("mm", Target("cpu")))
pytestmark = pytest.mark.skipif(bool(REASONS), reason="; ".join(REASONS))
compiles = pytest.mark.usefixtures("compiles")

FULL = Epilogue(bias=True, alpha=Alpha.SEGMENTS, row_scale=True)
FULL_ROWS = Epilogue(torch.float32, Alpha.ROWS, True, True)
CLUSTERS = (Tile(128, 128, 2, 2), Tile(256, 256, 4, 2))


@compiles
@pytest.mark.parametrize("tile", ALL, ids=str)
def test_nothing_spills(tile):
    code = compiled(kernel_of(tile), "sm_100a").cubin
    resources = cubin.resources(code)
    assert resources.spill_stores == resources.spill_loads == resources.local == 0
    assert resources.stack == 0
    most = 160 if tile in SPLIT else 128
    assert resources.registers <= most, "two CTAs of 192 threads on an SM: no limit near"
    assert resources.static_shared <= 1024, "what CUDA keeps for itself"


@compiles
@pytest.mark.parametrize("epilogue", [FULL, FULL_ROWS], ids=repr)
def test_the_fullest_epilogues_do_not_spill(epilogue):
    resources = cubin.resources(compiled(Kernel(Tile(256, 256, 2), epilogue), "sm_100a").cubin)
    assert resources.spill_stores == resources.local == resources.stack == 0


@compiles
@pytest.mark.parametrize("tile", [*TILES, *CLUSTERS], ids=str)
def test_the_mma_that_was_meant(tile):
    """Block-scaled MMAs with four scales an instruction row, by a pair of CTAs where two compute a
    tile; four of them for K = 256, with the copies of their scales.
    """
    code = cubin.sass(compiled(kernel_of(tile), "sm_100a").cubin)
    mmas = [i for i in code if i.opcode.startswith("UTCOMMA")]
    copies = [i for i in code if i.opcode.startswith("UTCCP")]
    steps = len(mmas) // 4  # ptxas unrolls the loop over stages
    assert len(mmas) == 4 * steps and steps >= 1
    assert len(copies) == steps * (4 + 4 * (2 if tile.columns > 128 else 1))
    for instruction in (*mmas, *copies):
        assert ("2CTA" in instruction.opcode) == (tile.rows == 256), instruction
    assert all("4X" in i.opcode for i in mmas)
    loads = [i for i in code if i.opcode.startswith("UTMALDG")]
    assert len(loads) == 4
    multicast = sum("MULTICAST" in i.opcode for i in loads)
    shared = (tile.cluster_columns > 1) * 2 + (tile.cluster_rows > tile.ctas)
    assert multicast == shared + (tile.cluster_rows > 1)
    assert not [i for i in code if i.opcode.startswith("BRA.U.ANY")], "a loop over lanes"


@compiles
@pytest.mark.parametrize("tile", TILES, ids=str)
def test_loops_stay_short(tile):
    """Instructions that one K = 256 takes the two feeding warps, and an output element the others:
    figures of public kernels are in bench/results/sm100_static.md.
    """
    code = cubin.sass(compiled(kernel_of(tile), "sm_100a").cubin)
    assert cubin.mma_loop(code).sass <= (60 if tile.columns <= 128 else 68)
    assert cubin.tma_loop(code).sass <= 36
    # Two divisions find a tile's place, 37 instructions, which 64 columns have to bear.
    most = 1.9 if tile.columns > 64 else 2.4
    assert cubin.epilogue_per_element(code, tile.columns).tile <= most


@compiles
def test_other_architectures():
    assert "sm_103a" in compiled(kernel_of(Tile(256, 128, 2)), "sm_103a").ptx
    assert cache_key(kernel_of(Tile(128, 64)), "sm_100a") != cache_key(
        kernel_of(Tile(128, 64)), "sm_103a"
    )


@pytest.fixture
def fresh_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> list[Kernel]:
    """An empty cache, and a compiler that says what it was asked for."""
    asked: list[Kernel] = []

    def compile_(kernel: Kernel, arch: str) -> dict[str, bytes]:
        asked.append(kernel)
        return {"object": b"object", "ptx": b"ptx", "cubin": arch.encode()}

    monkeypatch.setenv(environment.CACHE_DIR, str(tmp_path / "cache"))
    monkeypatch.setattr(compiler, "_compile", compile_)
    return asked


def test_a_kernel_is_compiled_once(fresh_cache):
    kernel = kernel_of(Tile(128, 128))
    assert not is_cached(kernel, "sm_100a")
    first = compiled(kernel, "sm_100a")
    assert first == compiled(kernel, "sm_100a") == Compiled(b"object", "ptx", b"sm_100a")
    assert fresh_cache == [kernel] and is_cached(kernel, "sm_100a")
    compiled(kernel, "sm_103a")
    compiled(kernel_of(Tile(128, 64)), "sm_100a")
    assert len(fresh_cache) == 3


def test_many_at_once_compile_once(fresh_cache):
    kernel = kernel_of(Tile(128, 128))
    with ThreadPoolExecutor(8) as pool:
        results = list(pool.map(lambda _: compiled(kernel, "sm_100a"), range(16)))
    assert len(fresh_cache) == 1 and len(set(results)) == 1


@pytest.mark.parametrize("damage", ["truncated", "flipped", "emptied", "another key's", "no zip"])
def test_a_damaged_entry_is_a_miss(fresh_cache, damage):
    kernel = kernel_of(Tile(128, 128))
    want = compiled(kernel, "sm_100a")
    (path,) = cache.directory().glob("*.zip")
    content = path.read_bytes()
    if damage == "truncated":
        path.write_bytes(content[: len(content) // 2])
    elif damage == "flipped":
        with zipfile.ZipFile(path) as archive:
            start = archive.getinfo("object").header_offset + len("object") + 30
        path.write_bytes(content[:start] + bytes([content[start] ^ 0xFF]) + content[start + 1 :])
    elif damage == "emptied":
        path.write_bytes(b"")
    elif damage == "another key's":
        compiled(kernel_of(Tile(128, 64)), "sm_100a")
        (other,) = set(cache.directory().glob("*.zip")) - {path}
        path.write_bytes(other.read_bytes())
    else:
        path.write_bytes(b"not an archive" * 100)
    before = len(fresh_cache)
    assert not is_cached(kernel, "sm_100a")
    assert compiled(kernel, "sm_100a") == want
    assert len(fresh_cache) == before + 1 and is_cached(kernel, "sm_100a")


def test_an_interrupted_compilation_leaves_nothing(fresh_cache, monkeypatch):
    def fail(kernel, arch):
        raise KeyboardInterrupt

    kernel = kernel_of(Tile(128, 128))
    with monkeypatch.context() as patch:
        patch.setattr(compiler, "_compile", fail)
        with pytest.raises(KeyboardInterrupt):
            compiled(kernel, "sm_100a")
    assert not list(cache.directory().glob("*.zip"))
    assert compiled(kernel, "sm_100a")


def test_what_changes_code_is_in_the_key(monkeypatch):
    kernel = kernel_of(Tile(128, 128))
    key = cache_key(kernel, "sm_100a")
    monkeypatch.setenv("CUTE_DSL_LINEINFO", "1")
    assert cache_key(kernel, "sm_100a") != key
    monkeypatch.delenv("CUTE_DSL_LINEINFO")
    assert cache_key(kernel, "sm_100a") == key
    monkeypatch.setattr(compiler, "_sources", lambda: "other sources")
    assert cache_key(kernel, "sm_100a") != key


def test_compiling_under_capture_names_warmup(monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_current_stream_capturing", lambda: True)
    with pytest.raises(RuntimeError, match=r"CUDA graph is captured; call nvfp4.warmup"):
        function_on(kernel_of(Tile(128, 192)), torch.device("cuda", 7))


@pytest.mark.parametrize(
    "shapes, max_m, message",
    [([(64, 250)], 1, "K a positive multiple of 16"), ([(64, 256)], 0, "max_m needs a positive")],
)
def test_warmup_refuses(shapes, max_m, message):
    with pytest.raises(ValueError, match=message):
        nvfp4.warmup(shapes, max_m=max_m, device="cpu", backend="cutedsl")


def test_rows_that_tma_cannot_load_are_copied():
    data = torch.arange(3 * 40, dtype=torch.uint8).view(3, 40)
    copy = loadable(data)
    assert copy.data_ptr() % 16 == 0 and copy.stride(0) == 48 and (copy == data).all()
    whole = torch.zeros(5, 64, dtype=torch.uint8)
    assert loadable(whole) is whole and loadable(whole[::2]).stride(0) == 128
    assert loadable(whole[:, 8:]).data_ptr() % 16 == 0
