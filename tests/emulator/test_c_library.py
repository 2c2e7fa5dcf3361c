"""Compiled C code is kept where nobody else can write, and only whole files are loaded."""

import ctypes
from pathlib import Path

import pytest

from nvfp4.emulator import c_library


@pytest.fixture
def source(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    (tmp_path / "cache").mkdir(mode=0o700)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    (tmp_path / "number.h").write_text("#define NUMBER 7\n")
    source = tmp_path / "answer.c"
    source.write_text('#include "number.h"\nint answer(void) { return NUMBER; }\n')
    return source


def answer(source: Path) -> int:
    """Load the library as a new process would."""
    header = source.with_name("number.h")
    path = c_library.loadable.__wrapped__(source, "-O1", headers=(header,))
    return ctypes.CDLL(path).answer()


def kept(source: Path) -> list[Path]:
    return sorted((source.parent / "cache").rglob("*.so"))


def no_compiler(*_: object) -> bytes:
    raise AssertionError("it is compiled again")


def test_a_library_is_compiled_once(source, monkeypatch):
    assert answer(source) == 7
    assert [path.name[:7] for path in kept(source)] == ["answer-"]
    monkeypatch.setattr(c_library, "_compile", no_compiler)
    assert answer(source) == 7


def test_a_changed_header_is_compiled_again(source):
    assert answer(source) == 7
    source.with_name("number.h").write_text("#define NUMBER 8\n")
    assert answer(source) == 8
    assert len(kept(source)) == 2


def test_a_damaged_library_is_compiled_again(source):
    assert answer(source) == 7
    (path,) = kept(source)
    path.write_bytes(path.read_bytes()[:-100])
    assert answer(source) == 7


def test_a_folder_that_others_may_write_to_keeps_nothing(source):
    folder = source.parent / "cache" / "nvfp4-emulator"
    folder.mkdir()
    folder.chmod(0o777)
    assert answer(source) == 7
    assert not kept(source)


def test_c_code_that_does_not_compile_is_shown(source):
    source.write_text("int answer(void) { return }\n")
    with pytest.raises(RuntimeError, match="cannot compile answer.c"):
        answer(source)


def test_no_compiler_is_said(source, monkeypatch):
    monkeypatch.setenv("CC", "no-such-compiler")
    with pytest.raises(RuntimeError, match="needs a C compiler"):
        answer(source)
