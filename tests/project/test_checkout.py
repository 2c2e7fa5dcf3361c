"""A checkout's folders are imported from where git has them, though nvfp4/ holds links to them."""

import ast
import bdb
import json
import os
import shutil
import subprocess
import sys
import traceback
from pathlib import Path
from types import FrameType

import pytest
import torch
from paths import ROOT

import nvfp4
from nvfp4.checkout import real_folders

LINKS = [path for path in (ROOT / "nvfp4").iterdir() if path.is_symlink()]

pytestmark = pytest.mark.skipif(not LINKS, reason="needs a checkout, got copies of its folders")


@pytest.fixture(scope="module")
def tracked() -> set[Path]:
    """The files of the package that git tracks."""
    if not (ROOT / ".git").exists():
        pytest.skip("needs git's list of files, got no repository")
    listed = subprocess.run(
        ["git", "ls-files", "*.py"], cwd=ROOT, capture_output=True, text=True, check=True
    )
    folders = {"nvfp4", *(link.name for link in LINKS)}
    paths = map(Path, listed.stdout.splitlines())
    return {path for path in paths if path.parts[0] in folders and (ROOT / path).exists()}


def _python(*args: str, **options) -> subprocess.CompletedProcess[str]:
    return subprocess.run([sys.executable, *args], capture_output=True, text=True, **options)


def _bad_call() -> None:
    """Raises from ops/mm.py: the operands' K differ."""
    a, b = (
        nvfp4.quantize(torch.zeros(16, k), torch.ones(1), backend="reference") for k in (32, 64)
    )
    nvfp4.mm(a, b)


class _Debugger(bdb.Bdb):
    """Stops nowhere: its breakpoints count how often they are hit."""

    def user_line(self, frame: FrameType) -> None:
        self.set_continue()


def test_a_breakpoint_in_ops_mm_was_not_hit():
    file = ROOT / "ops" / "mm.py"
    (function,) = (
        node
        for node in ast.parse(file.read_text()).body
        if isinstance(node, ast.FunctionDef) and node.name == "mm"
    )
    debugger = _Debugger()
    first = next(node for node in function.body if not isinstance(node.value, ast.Constant))
    assert debugger.set_break(str(file), first.lineno) is None
    try:
        with pytest.raises(ValueError):
            debugger.runcall(_bad_call)
        assert [point.hits for point in debugger.get_breaks(str(file), first.lineno)] == [1]
    finally:
        debugger.clear_all_breaks()


def test_a_traceback_named_a_file_that_git_does_not_track(tracked):
    with pytest.raises(ValueError) as raised:
        _bad_call()
    frames = traceback.extract_tb(raised.value.__traceback__)
    own = [
        Path(frame.filename).relative_to(ROOT)
        for frame in frames
        if "site-packages" not in frame.filename
    ]
    assert len(own) > 2
    assert {path for path in own if path.parts[0] != "tests"} <= tracked


def test_coverage_counted_the_package_twice_or_not_at_all(tracked, tmp_path):
    """A run of one command counts every file of the package, under its path in the repository."""
    pytest.importorskip("coverage")
    data = f"--data-file={tmp_path / 'data'}"
    for args in (["run", data, "-m", "nvfp4", "--help"], ["json", data, "-o", tmp_path / "json"]):
        done = _python("-m", "coverage", *map(str, args), cwd=ROOT)
        assert done.returncode == 0, done.stderr
    files = json.loads((tmp_path / "json").read_text())["files"]
    assert set(files) == {str(path) for path in tracked}
    assert files["ops/mm.py"]["executed_lines"]
    assert not files["bench/plot.py"]["executed_lines"]
    assert files["bench/plot.py"]["summary"]["num_statements"] > 10


@pytest.mark.slow
def test_no_file_is_imported_under_two_names():
    loaded = "{m.__file__ for name, m in sys.modules.items() if name.startswith('nvfp4')}"
    done = _python("-c", f"import sys, nvfp4.cli; print(*{loaded}, sep='\\n')", cwd=ROOT)
    files = done.stdout.splitlines()
    assert len(files) == len({os.path.realpath(file) for file in files}) > 50
    assert all(Path(file).is_relative_to(ROOT) for file in files)
    again = _python("-c", "import nvfp4.nvfp4", cwd=ROOT)
    assert again.stderr.endswith(
        "ImportError: nvfp4: needs to be imported as nvfp4, got nvfp4.nvfp4\n"
    )


@pytest.mark.parametrize("kept", [True, False], ids=["as text", "not at all"])
def test_an_archive_without_links_fails_in_one_sentence(tmp_path, kept):
    """Unpacked where there are no links, a link is a text file; a wheel made of that lacks it."""
    shutil.copytree(ROOT / "spec", tmp_path / "spec")
    (tmp_path / "nvfp4").mkdir()
    for path in (ROOT / "nvfp4").iterdir():
        if path.is_file():
            shutil.copy(path, tmp_path / "nvfp4")
        elif path.is_symlink() and kept:
            (tmp_path / "nvfp4" / path.name).write_text(os.readlink(path))
    environment = {**os.environ, "PYTHONPATH": ""}
    done = _python("-c", "import nvfp4", cwd=tmp_path, env=environment)
    assert done.stderr.splitlines()[-1] == (
        f"ImportError: nvfp4: {tmp_path}/nvfp4/spec needs to be a folder or a link to one: this "
        "copy lost its links when it was unpacked, so clone the repository with git, or install a "
        "wheel"
    )


def test_copies_of_the_folders_are_imported_as_they_are(tmp_path):
    """A wheel and an unpacked sdist hold folders, not links."""
    (tmp_path / "nvfp4" / "spec").mkdir(parents=True)
    init = tmp_path / "nvfp4" / "__init__.py"
    assert real_folders("nvfp4", str(init)) == [str(init.parent)]
