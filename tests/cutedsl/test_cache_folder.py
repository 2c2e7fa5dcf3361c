"""A cache folder that cannot be used costs compilations, never a call; nobody's code is run."""

import errno
import json
import os
import shutil
import stat
import subprocess
import sys
import tempfile
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from paths import ROOT

import nvfp4
from nvfp4.backends import cutedsl, environment
from nvfp4.backends.cutedsl.gemm.config import Epilogue, Kernel, Tile
from nvfp4.backends.cutedsl.runtime import cache
from nvfp4.backends.cutedsl.runtime import compile as compiler
from nvfp4.backends.problem import Problem
from nvfp4.backends.target import Target

pytest.importorskip("filelock")

NOBODY = 65534
REASONS = cutedsl.BACKEND.reasons(Problem("mm", Target("cpu")))


@pytest.fixture
def folder(monkeypatch) -> Iterator[Path]:
    """Where the cache is to be: not there yet, and below a folder that every user can enter."""
    parent = Path(tempfile.mkdtemp())
    parent.chmod(0o755)
    temporary = parent / "temporary"  # where forks of this process leave their private folders
    temporary.mkdir()
    temporary.chmod(0o1777)
    monkeypatch.setattr(tempfile, "tempdir", str(temporary))
    monkeypatch.setenv(environment.CACHE_DIR, str(parent / "cache"))
    yield parent / "cache"
    for path in parent.rglob("*"):
        if path.is_dir():
            path.chmod(0o755)
    shutil.rmtree(parent)


def calls(*keys: str) -> dict[str, Any]:
    """Gets entries: the keys that were made, the values, and what was warned of."""
    made: list[str] = []

    def make(key: str) -> dict[str, bytes]:
        made.append(key)
        return {"value": f"value of {key}".encode()}

    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        values = [cache.get(key, lambda key=key: make(key))["value"].decode() for key in keys]
    said = [str(warning.message) for warning in caught if "nvfp4" in str(warning.message)]
    return {"made": made, "values": values, "said": said}


def in_a_process(function: Callable[[], dict[str, Any]], user: int = -1) -> dict[str, Any]:
    """What it returns in a new process, of another user if this one may become him."""
    reader, writer = os.pipe()
    pid = os.fork()
    if pid == 0:
        try:
            if user >= 0 and os.geteuid() == 0:
                os.setgroups([])
                os.setgid(user)
                os.setuid(user)
            os.write(writer, json.dumps(function()).encode())
        except BaseException as error:
            os.write(writer, json.dumps({"raised": repr(error)}).encode())
        finally:
            os._exit(0)
    os.close(writer)
    with open(reader, "rb") as answer:
        told = answer.read()
    os.waitpid(pid, 0)
    return json.loads(told)


def went_on(found: dict[str, Any], reason: str, *keys: str) -> None:
    """Every entry was made, and it was said once why none is kept."""
    assert "raised" not in found, found["raised"]
    assert found["values"] == [f"value of {key}" for key in keys]
    assert found["made"] == list(keys)
    (said,) = found["said"]
    assert environment.CACHE_DIR in said and reason in said


def test_what_is_kept_is_found_by_the_next_process(folder):
    first = in_a_process(lambda: calls("a", "b"))
    assert first["made"] == ["a", "b"] and first["said"] == []
    second = in_a_process(lambda: calls("a", "b"))
    assert second == {"made": [], "values": first["values"], "said": []}
    assert not list(folder.glob("*.tmp"))


def test_a_file_in_the_place_of_the_folder_stopped_calls(folder):
    folder.write_text("a file")
    went_on(in_a_process(lambda: calls("a", "b")), "it is not a folder", "a", "b")
    assert folder.read_text() == "a file"


def test_a_file_in_the_place_of_a_parent_stopped_calls(folder, monkeypatch):
    folder.write_text("a file")
    monkeypatch.setenv(environment.CACHE_DIR, str(folder / "below" / "it"))
    went_on(in_a_process(lambda: calls("a")), "Not a directory", "a")


def test_a_user_without_a_home_could_not_call(folder, monkeypatch):
    def no_home() -> Path:
        raise RuntimeError("Could not determine home directory.")

    monkeypatch.delenv(environment.CACHE_DIR, raising=False)
    monkeypatch.delenv("XDG_CACHE_HOME", raising=False)
    monkeypatch.setattr(Path, "home", no_home)
    went_on(in_a_process(lambda: calls("a", "b")), "home directory", "a", "b")


def test_a_folder_that_cannot_be_made_stopped_calls(folder):
    folder.parent.chmod(0o555)
    went_on(in_a_process(lambda: calls("a"), NOBODY), "Permission denied", "a")


def test_a_folder_that_cannot_be_written_stopped_calls(folder):
    assert in_a_process(lambda: calls("kept"))["made"] == ["kept"]
    assert cache.read("kept"), "and the other user need not import what reading takes"
    folder.chmod(0o555)
    found = in_a_process(lambda: calls("kept", "a", "b"), NOBODY)
    assert found["values"] == ["value of kept", "value of a", "value of b"]
    assert found["made"] == ["a", "b"], "what is there is used, though no more can be kept"
    (said,) = found["said"]
    assert "Permission denied" in said and environment.CACHE_DIR in said


@pytest.mark.parametrize("code", [errno.ENOSPC, errno.EROFS, errno.EDQUOT])
def test_a_full_disk_stopped_calls(folder, monkeypatch, code):
    def refuse(source: Any, target: Any) -> None:
        raise OSError(code, os.strerror(code), str(target))

    monkeypatch.setattr(os, "replace", refuse)
    went_on(in_a_process(lambda: calls("a", "b")), os.strerror(code), "a", "b")
    assert {path.suffix for path in folder.iterdir()} <= {".lock"}, "half-written entries are left"


def test_a_write_that_ends_early_stopped_calls(folder):
    """The kernel refuses to write more than one byte, as it does on a full disk."""
    import resource
    import signal

    def limited() -> dict[str, Any]:
        signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
        resource.setrlimit(resource.RLIMIT_FSIZE, (1, resource.RLIM_INFINITY))
        found = calls("a")
        resource.setrlimit(resource.RLIMIT_FSIZE, (resource.RLIM_INFINITY,) * 2)
        return found

    went_on(in_a_process(limited), os.strerror(errno.EFBIG), "a")
    assert {path.suffix for path in folder.iterdir()} <= {".lock"}


def test_a_lock_that_cannot_be_opened_stopped_calls(folder):
    cache._path("a").with_suffix(".lock").mkdir()
    found = in_a_process(lambda: calls("a"))
    assert found == {"made": ["a"], "values": ["value of a"], "said": []}
    assert in_a_process(lambda: calls("a"))["made"] == [], "kept all the same"


def test_entries_that_another_user_keeps_to_himself_are_misses(folder):
    in_a_process(lambda: calls("a"))
    for path in folder.iterdir():
        path.chmod(0o000 if os.geteuid() else 0o600)
    found = in_a_process(lambda: calls("a"), NOBODY)
    assert found["made"] == ["a"] and found["values"] == ["value of a"]


@pytest.mark.parametrize("umask, mode", [(0o022, 0o644), (0o077, 0o600), (0o000, 0o644)])
def test_entries_could_be_read_by_their_maker_alone(folder, umask, mode):
    def keep() -> dict[str, Any]:
        os.umask(umask)
        return calls("a")

    assert in_a_process(keep)["said"] == []
    (entry,) = folder.glob("*.zip")
    assert stat.S_IMODE(entry.stat().st_mode) == mode
    assert in_a_process(lambda: calls("a"))["made"] == [], "the folder made is one to load from"


@pytest.mark.parametrize("mode", [0o777, 0o1777, 0o775])
def test_code_was_loaded_from_a_folder_that_others_may_write_to(folder, mode):
    in_a_process(lambda: calls("a"))
    folder.chmod(mode)
    before = sorted(folder.iterdir())
    went_on(in_a_process(lambda: calls("a", "b")), f"mode {mode:04o}", "a", "b")
    assert sorted(folder.iterdir()) == before


def test_code_was_loaded_from_another_users_folder(folder, monkeypatch):
    in_a_process(lambda: calls("a"))
    if os.geteuid() == 0:
        os.chown(folder, NOBODY, -1)
    else:
        user = os.geteuid()
        monkeypatch.setattr(os, "geteuid", lambda: user + 1)
    went_on(in_a_process(lambda: calls("a")), f"id {folder.stat().st_uid}", "a")


def test_a_private_folder_is_private_and_is_gone_with_its_process(folder):
    folder.write_text("a file")
    code = """
import multiprocessing, os, stat
from nvfp4.backends.cutedsl.runtime.cache_folder import directory

folder = directory()
if os.fork() == 0:
    raise SystemExit  # it leaves its parent's folder alone
os.wait()
print(folder.is_dir(), oct(stat.S_IMODE(folder.stat().st_mode)), folder, flush=True)
child = multiprocessing.get_context("fork").Process(target=lambda: print(directory(), flush=True))
child.start()
child.join()
"""
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    run = subprocess.run(
        [sys.executable, "-W", "ignore", "-c", code],
        env=environment,
        capture_output=True,
        text=True,
        check=True,
    )
    there, mode, parents, childs = run.stdout.split()
    assert there == "True" and mode == "0o700"
    assert parents != childs and not Path(parents).exists() and not Path(childs).exists()


@pytest.mark.skipif(bool(REASONS), reason="; ".join(REASONS))
def test_an_object_for_another_kind_of_host_was_loaded(monkeypatch):
    """A home shared by x86-64 and Arm machines has one cache for both."""
    kernel = Kernel(Tile(128, 128), Epilogue())
    here = compiler.cache_key(kernel, "sm_100a")
    monkeypatch.setattr("platform.machine", lambda: "another")
    assert compiler.cache_key(kernel, "sm_100a") != here


def test_an_emulated_call_needed_a_cache_folder(folder, emulated):
    folder.write_text("a file")
    code = (
        "import torch, nvfp4; torch.manual_seed(0)\n"
        "a, b = nvfp4.quantize(torch.randn(8, 64)), nvfp4.quantize_weight(torch.randn(16, 64))\n"
        "emulated = nvfp4.mm(a, b, out_dtype=torch.float32, backend='cutedsl')\n"
        "print(emulated.double().tolist())"
    )
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    run = subprocess.run(
        [sys.executable, "-c", code], env=environment, capture_output=True, text=True
    )
    assert run.returncode == 0, run.stderr
    assert run.stderr.count("RuntimeWarning: nvfp4: compiled kernels are not kept") == 1
    a, b = nvfp4.quantize(torch.randn(8, 64)), nvfp4.quantize_weight(torch.randn(16, 64))
    want = nvfp4.mm(a, b, out_dtype=torch.float32, backend="reference")
    torch.testing.assert_close(torch.tensor(json.loads(run.stdout)), want, rtol=1e-6, atol=1e-6)


def test_a_triton_cache_folder_that_cannot_be_written_stopped_compiling(folder, compiles):
    folder.write_text("a file")
    code = """
import torch
from nvfp4.backends.triton.runtime.ahead import compile_launch
from nvfp4.backends.triton.moe_combine import plan
from nvfp4.calls import MoeCombine

y, out = torch.empty(2, 8, 64, dtype=torch.bfloat16, device="meta").unbind()
weights = torch.empty(8, 1, device="meta")
positions = torch.empty(8, 1, dtype=torch.int32, device="meta")
call = MoeCombine(y, weights, positions)
print(len(compile_launch(plan(call, out), 90).asm["cubin"]))
compile_launch(plan(call, out), 80)
"""
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "TRITON_INTERPRET": "0"}
    environment["TRITON_CACHE_DIR"] = str(folder)
    run = subprocess.run(
        [sys.executable, "-c", code], env=environment, capture_output=True, text=True
    )
    assert run.returncode == 0, run.stderr
    assert int(run.stdout) > 0
    assert run.stderr.count(f"Triton's kernels are not kept in {folder}: File exists") == 1


def marks(mark: Path, monkeypatch: pytest.MonkeyPatch) -> dict[str, Any]:
    """What is said on leaving the mark of a compiled kernel, and if it is found afterwards."""
    warmup = pytest.importorskip("nvfp4.backends.triton.warmup")
    monkeypatch.setattr(warmup, "_mark", lambda launch, sm: mark)
    monkeypatch.setattr(warmup, "_run_share", lambda *_: _[-1].put(None))
    said = warmup._leave_mark(mark)
    return {"said": said, "outcomes": list(warmup.compile_all([("kernel", None)], [], 90))}


def test_a_mark_that_cannot_be_left_failed_the_warmup(folder, monkeypatch):
    """Triton's cache has the kernel; only the mark that it was compiled cannot be made."""
    good = marks(folder / "nvfp4" / "mark", monkeypatch)
    assert good == {"said": "", "outcomes": [("kernel", "cached")]}
    shutil.rmtree(folder)
    folder.write_text("a file")
    found = marks(folder / "nvfp4" / "mark", monkeypatch)
    assert "no mark can be left" in found["said"] and "Not a directory" in found["said"]
    assert found["outcomes"] == []


def test_a_mark_that_cannot_be_read_stopped_the_warmup(folder, monkeypatch):
    marks(folder / "nvfp4" / "mark", monkeypatch)
    folder.chmod(0o000 if os.geteuid() else 0o700)
    found = in_a_process(lambda: marks(folder / "nvfp4" / "mark", monkeypatch), NOBODY)
    assert "Permission denied" in found["said"] and found["outcomes"] == []
