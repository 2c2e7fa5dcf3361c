"""Docstrings are short sentences, and none of them continues the name that it is shown under."""

import ast
import re
from collections.abc import Iterator
from inspect import cleandoc
from pathlib import Path
from statistics import median

import pytest
from paths import ROOT

MEDIAN_WORDS, MOST_WORDS = 15, 35
CONTINUES = re.compile(r"(Of|By|As|For|Those|Who|That|The same)\b")
"""The first words of half a sentence, which continues the name above it."""

FOLDERS = sorted(path.name for path in (ROOT / "nvfp4").iterdir() if path.is_dir())


def _docstrings(path: Path) -> Iterator[tuple[int, str]]:
    """The docstrings of a file's modules, classes, functions and constants, with their lines."""
    for node in ast.walk(ast.parse(path.read_text())):
        body = getattr(node, "body", None)
        for statement in body if isinstance(body, list) else ():
            if (
                isinstance(statement, ast.Expr)
                and isinstance(statement.value, ast.Constant)
                and isinstance(statement.value.value, str)
            ):
                yield statement.lineno, cleandoc(statement.value.value)


def _found(folder: str) -> list[tuple[str, str]]:
    """The docstrings of a folder of the package, with their places."""
    files = sorted((ROOT / folder).rglob("*.py"))
    return [
        (f"{path.relative_to(ROOT)}:{line}", text)
        for path in files
        for line, text in _docstrings(path)
    ]


def _continuing(folder: str) -> list[str]:
    return [f"{at}: {text}" for at, text in _found(folder) if CONTINUES.match(text)]


def _sentences(docstring: str) -> list[str]:
    """The sentences of a docstring without its indented lines, which are lists and code."""
    paragraphs = re.sub(r"^ +.*\n?", "", docstring, flags=re.MULTILINE).split("\n\n")
    return [s for p in paragraphs for s in re.split(r"(?<=[.!?:])\s+", p.strip()) if s]


def _lengths(folder: str) -> dict[tuple[str, str], int]:
    return {(at, s): len(s.split()) for at, text in _found(folder) for s in _sentences(text)}


def _long(folder: str) -> list[tuple[str, str]]:
    return [where for where, words in _lengths(folder).items() if words > MOST_WORDS]


@pytest.mark.parametrize("folder", ["nvfp4", *FOLDERS])
def test_a_docstring_continued_the_name_above_it(folder):
    assert _found(folder)
    assert not _continuing(folder)


@pytest.mark.parametrize("folder", ["nvfp4", *FOLDERS])
def test_a_sentence_of_a_docstring_was_long(folder):
    assert not _long(folder)


@pytest.mark.parametrize("folder", FOLDERS)
def test_half_of_the_sentences_are_shorter(folder):
    assert median(_lengths(folder).values()) <= MEDIAN_WORDS


def test_what_a_docstring_and_a_sentence_are(tmp_path):
    file = tmp_path / "a.py"
    text = '"""As m."""\nX = 1\n"""Of x: a.\n\n    list\n\nB."""\nclass A:\n    """By a."""\n'
    file.write_text(text + '    y: int\n    """The y."""\ndef f():\n    """For f."""\n')
    found = [said for _, said in _docstrings(file)]
    assert [_sentences(said) for said in found] == [
        *(["As m."], ["Of x:", "a.", "B."], ["By a."], ["The y."], ["For f."])
    ]
