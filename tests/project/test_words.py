"""Docstrings stand alone: none continues the name that it is shown under."""

import ast
import re
from collections.abc import Iterator
from pathlib import Path

import pytest
from paths import ROOT

CONTINUES = re.compile(r"(Of|By|As|For|Those|Who|That|The same)\b")
"""Words with which a half sentence begins, one that is read on from a name."""

NOT_YET = {"ahead", "backends", "calls", "dispatch"}
"""Folders whose docstrings are not rewritten yet. This set can only shrink."""

FOLDERS = sorted(path.name for path in (ROOT / "nvfp4").iterdir() if path.is_dir())


def _docstrings(path: Path) -> Iterator[tuple[int, str]]:
    """The docstrings of a file's modules, classes, functions and constants, with their lines."""
    for node in ast.walk(ast.parse(path.read_text())):
        body = getattr(node, "body", None)
        if not isinstance(body, list):
            continue
        documented = isinstance(node, ast.Module | ast.ClassDef | ast.FunctionDef)
        for index, statement in enumerate(body):
            after_a_name = index and isinstance(body[index - 1], ast.Assign | ast.AnnAssign)
            if (
                (after_a_name or (documented and index == 0))
                and isinstance(statement, ast.Expr)
                and isinstance(statement.value, ast.Constant)
                and isinstance(statement.value.value, str)
            ):
                yield statement.lineno, statement.value.value


def _continuing(folder: str) -> list[str]:
    files = sorted((ROOT / folder).rglob("*.py"))
    return [
        f"{path.relative_to(ROOT)}:{line}: {text.splitlines()[0]}"
        for path in files
        for line, text in _docstrings(path)
        if CONTINUES.match(text.strip())
    ]


@pytest.mark.parametrize("folder", ["nvfp4", *(f for f in FOLDERS if f not in NOT_YET)])
def test_a_docstring_read_on_from_the_name_above_it(folder):
    files = (ROOT / folder).rglob("*.py")
    assert any(True for path in files for _ in _docstrings(path))
    assert not _continuing(folder)


@pytest.mark.parametrize("folder", sorted(NOT_YET & set(FOLDERS)))
def test_a_folder_that_is_done_leaves_the_list(folder):
    assert _continuing(folder)


def test_what_a_docstring_is(tmp_path):
    file = tmp_path / "a.py"
    text = (
        '"""As m."""\nX = 1\n"""Of x."""\nclass A:\n    """By a."""\n    y: int\n    """The y."""\n'
    )
    file.write_text(text + 'def f():\n    """For f."""\n    return 1\n"""Of none."""\n')
    assert [said for _, said in _docstrings(file)] == [
        *("As m.", "Of x.", "By a.", "The y.", "For f.")
    ]
