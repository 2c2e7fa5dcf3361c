"""Docstrings are plain sentences, the first of which stands alone."""

import ast
import re
from inspect import cleandoc
from pathlib import Path
from statistics import median

import pytest
from paths import ROOT

ROOMS = ("emulator",)
MEDIAN_WORDS, MOST_WORDS = 15, 35
CONTINUES = re.compile(r"(Of|By|As|For|Those|Who|That|The same)\b")
"""The beginning of a docstring that only continues the name before it."""


def _docstrings(path: Path) -> list[str]:
    """List the docstrings of a module, its classes, functions, attributes and constants."""
    return [
        cleandoc(statement.value.value)
        for node in ast.walk(ast.parse(path.read_text()))
        if isinstance(body := getattr(node, "body", None), list)
        for statement in body
        if isinstance(statement, ast.Expr)
        and isinstance(statement.value, ast.Constant)
        and isinstance(statement.value.value, str)
    ]


def _sentences(docstring: str) -> list[str]:
    """Split a docstring, without its indented lines: these are code and tables."""
    paragraphs = re.sub(r"^ +.*\n?", "", docstring, flags=re.MULTILINE).split("\n\n")
    return [s for p in paragraphs for s in re.split(r"(?<=[.!?:])\s+", p.strip()) if s]


def _found(room: str) -> list[tuple[str, str]]:
    files = sorted((ROOT / room).rglob("*.py"))
    return [(str(path.relative_to(ROOT)), text) for path in files for text in _docstrings(path)]


@pytest.mark.parametrize("room", ROOMS)
def test_a_docstring_only_continues_a_name(room):
    found = _found(room)
    assert len(found) > 100
    assert [(path, text) for path, text in found if CONTINUES.match(text)] == []


@pytest.mark.parametrize("room", ROOMS)
def test_sentences_of_docstrings_are_long(room):
    lengths = {(p, s): len(s.split()) for p, text in _found(room) for s in _sentences(text)}
    assert median(lengths.values()) <= MEDIAN_WORDS
    assert [where for where, words in lengths.items() if words > MOST_WORDS] == []
