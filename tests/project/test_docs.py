"""The pages say what is so: their examples run, their links lead somewhere, their sentences are
short, and their tables name what is there.
"""

import ast
import json
import re
import shlex
import shutil
from collections import defaultdict
from collections.abc import Iterator
from itertools import pairwise
from pathlib import Path
from statistics import median

import pytest
from mutations import EDITS
from pages import PAGES, ROOT, anchors, blocks, indented, links, sentences
from typer.testing import CliRunner

import nvfp4
from nvfp4.checkpoints.schemes import ALGORITHMS
from nvfp4.cli import app
from tests.interop.compare import table

MEDIAN_WORDS, MOST_WORDS = 15, 35
EMULATED = 'backend="cutedsl"'
PREFIX = re.compile("'([A-Z_]+_)'")
"""The prefix of environment variables as it stands in Python code."""

pages = pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))


# code blocks


@pytest.mark.parametrize(
    "page",
    [
        pytest.param(page, marks=pytest.mark.emulated if EMULATED in page.read_text() else ())
        for page in PAGES
    ],
    ids=lambda page: str(page.relative_to(ROOT)),
)
def test_every_example_runs(page, tmp_path, source, monkeypatch):
    """In the order of the page, in one folder; `model` in it is a model to convert."""
    shown = [block for block in blocks(page.read_text()) if not block.not_run]
    code = "".join(block.code for block in shown)
    monkeypatch.chdir(tmp_path)
    if "nvfp4 convert" in code:
        for package in ("safetensors", "transformers", "accelerate", "gguf", "tokenizers"):
            pytest.importorskip(package)
        shutil.copytree(source("llama"), tmp_path / "model")
    if EMULATED in code:
        _skip_without_emulator()
    names: dict = {}
    for language, text, _ in shown:
        if language == "python":
            exec(text, names)
        elif language == "sh":
            _commands(text)
        else:
            pytest.fail(f"neither Python nor a shell's, and not marked as not run: {text}")


def _skip_without_emulator() -> None:
    (stage,) = nvfp4.explain("mm", "cpu", "cutedsl").stages
    if not stage.backend:
        pytest.skip(str(stage.verdicts[0]))


def _commands(text: str) -> None:
    """A shell's lines, each of which calls our command line: in this process, which has torch."""
    for line in text.splitlines():
        words = shlex.split(line, comments=True)
        assert words[:3] == ["python", "-m", "nvfp4"], f"neither ours nor marked as not run: {line}"
        done = CliRunner().invoke(app, words[3:])
        assert done.exit_code == 0, f"{line}\n{done.output[-2000:]}\n{done.exception}"


def test_a_block_is_not_run_only_with_a_reason():
    text = "<!-- not run: needs a GPU -->\n```sh\na\n```\n<!-- not run: -->\n```sh\nb\n```\n"
    assert [(b.code, b.not_run) for b in blocks(text)] == [("a\n", "needs a GPU"), ("b\n", "")]


@pages
def test_code_is_fenced(page):
    """An indented block would be neither run nor marked."""
    assert not indented(page.read_text())
    assert indented("Text:\n\n    code\n") == ["    code"]


# links


@pages
def test_every_link_leads_to_a_file_and_a_heading(page):
    for target in links(page.read_text()):
        if "://" in target:
            continue
        path, _, anchor = target.partition("#")
        file = (page.parent / path).resolve() if path else page
        assert file.exists(), f"{page.relative_to(ROOT)}: {target}"
        if anchor:
            assert anchor in anchors(file.read_text()), f"{page.relative_to(ROOT)}: {target}"


def test_every_page_of_docs_is_linked_from_the_front_page():
    readme = set(links((ROOT / "README.md").read_text()))
    assert {f"docs/{page.name}" for page in (ROOT / "docs").iterdir()} <= readme


# words


@pages
def test_sentences_are_short(page):
    found = sentences(page.read_text())
    long = [" ".join(words) for words in found if len(words) > MOST_WORDS]
    assert not long
    assert median(map(len, found)) <= MEDIAN_WORDS


@pytest.mark.parametrize(
    "text, lengths",
    [
        ("One two. Three four five!", [2, 3]),
        ("A line\nand its end; all: one sentence.", [8]),
        ("Before:\n\n- a b\n- c d\n  e. F g.\n", [1, 2, 3, 2]),
        ("See `a b c` and [two words](x.md) -- 1.5 µs.", [7]),
        (
            "# Not this\n| nor | this |\n![nor this](a.png)\n```sh\nnor. this.\n```\n\nBut this.",
            [2],
        ),
        ("<!-- not. this -->\n\n1. One (two). Three.", [2, 1]),
    ],
)
def test_what_counts_as_a_sentence(text, lengths):
    assert [len(words) for words in sentences(text)] == lengths


# environment variables


def _documented() -> dict[str, set[str]]:
    """The folders that the page names for each variable."""
    rows = re.findall(
        r"^\| `(\S+)` \|.*\| ([^|]*) \|$",
        (ROOT / "docs" / "environment.md").read_text(),
        re.MULTILINE,
    )
    return {name: set(re.findall(r"`(.+?)`", where)) for name, where in rows}


def _sources() -> dict[str, ast.Module]:
    """The package's files by their path in the repository."""
    files = [path for path in _files() if path.suffix == ".py"]
    return {str(path.relative_to(ROOT)): ast.parse(path.read_text()) for path in files}


def _files() -> list[Path]:
    """The package's files in Python and C, where git has them."""
    rooms = [ROOT / room.name for room in (ROOT / "nvfp4").iterdir() if room.is_dir()]
    return [path for room in rooms for path in room.rglob("*") if path.suffix in (".py", ".c")]


def _in_code() -> dict[str, set[str]]:
    """The files that read each variable of os.environ, or set a default for it; those that ask for
    all variables of a prefix, under `PREFIX*`; those of vLLM's own settings.
    """
    sources = _sources()
    constants = {path: _constants(tree) for path, tree in sources.items()}
    found: dict[str, set[str]] = defaultdict(set)
    for path, tree in sources.items():
        known = dict(constants[path])
        for node in ast.walk(tree):
            if isinstance(node, ast.ImportFrom) and (node.module or "").startswith("nvfp4."):
                file = node.module.removeprefix("nvfp4.").replace(".", "/")
                for there in (f"{file}.py", f"{file}/__init__.py"):
                    known |= constants.get(there, {}) | known
        for node in ast.walk(tree):
            for name in _names_read(node, known):
                found[name].add(path)
    return found


def _constants(tree: ast.Module) -> dict[str, str]:
    """The strings that a module has a name for."""
    return {
        target.id: node.value.value
        for node in tree.body
        if isinstance(node, ast.Assign) and isinstance(node.value, ast.Constant)
        for target in node.targets
        if isinstance(target, ast.Name) and isinstance(node.value.value, str)
    }


def _names_read(node: ast.AST, constants: dict[str, str]) -> Iterator[str]:
    if isinstance(node, ast.Call) and isinstance(node.func, ast.Attribute) and node.args:
        function, first = ast.unparse(node.func), node.args[0]
        if function in ("os.environ.get", "os.environ.setdefault", "os.getenv"):
            yield _string(first, constants)
        elif function.endswith(".startswith") and (prefix := PREFIX.fullmatch(ast.unparse(first))):
            yield f"{prefix[1]}*"
    elif isinstance(node, ast.Subscript) and ast.unparse(node.value) == "os.environ":
        if isinstance(node.ctx, ast.Load):
            yield _string(node.slice, constants)
    elif isinstance(node, ast.Attribute) and ast.unparse(node.value) == "envs":
        yield node.attr


def _string(node: ast.expr, constants: dict[str, str]) -> str:
    """What an argument is: a string, or a name of one."""
    return node.value if isinstance(node, ast.Constant) else constants[ast.unparse(node)]


def test_the_variables_of_the_page_are_those_of_the_code():
    documented, in_code = _documented(), _in_code()
    assert set(documented) == set(in_code)
    assert {"NVFP4_BACKEND", "NVFP4_TUNED", "NVFP4_CACHE_DIR", "CC"} < set(documented)


def test_the_page_names_the_folders_that_read_a_variable():
    in_code = _in_code()
    for name, folders in _documented().items():
        assert folders, name
        for folder in folders:
            assert any(path.startswith(f"{folder}/") for path in in_code[name]), (name, folder)
        for path in in_code[name]:
            assert any(path.startswith(f"{folder}/") for folder in folders), (name, path)


SETTINGS = "backends/environment.py"
"""The one file that reads our own variables."""


def test_our_variables_were_read_in_five_files():
    for name, paths in _in_code().items():
        if name.startswith("NVFP4_"):
            assert paths == {SETTINGS}, name


def test_each_of_our_variables_is_documented_where_it_is_read():
    body = ast.parse((ROOT / SETTINGS).read_text()).body
    after = dict(pairwise(body))
    for node in body:
        if isinstance(node, ast.Assign):
            assert isinstance(after[node], ast.Expr), ast.unparse(node)
            (said,) = sentences(ast.literal_eval(after[node].value))
            assert len(said) > 3
    ours = {name for name in _documented() if name.startswith("NVFP4_")}
    assert set(_constants(ast.Module(body, [])).values()) == ours


def test_every_name_that_looks_like_ours_is_on_the_page():
    """However it is read: in C, in a string, in a comment."""
    named = {n for path in _files() for n in re.findall(r"\bNVFP4_[A-Z_]+\b", path.read_text())}
    assert named - set(ALGORITHMS) <= set(_documented())


# numbers and lists


def test_every_result_is_in_the_index_and_the_reverse():
    folder = ROOT / "bench" / "results"
    listed = set()
    for cell in re.findall(r"^\| (`.*?) \|", (folder / "README.md").read_text(), re.MULTILINE):
        first, *endings = re.findall(r"`(.+?)`", cell)
        listed |= {first, *(Path(first).stem + ending for ending in endings)}
    assert listed == {path.name for path in folder.iterdir()} - {"README.md"}


def test_the_table_of_makers_checkpoints_is_the_recorded_one():
    rows = json.loads((ROOT / "bench" / "results" / "interop.json").read_text())["rows"]
    assert table(rows) in (ROOT / "docs" / "serving.md").read_text()


def test_the_faults_are_counted():
    text = (ROOT / "docs" / "verification.md").read_text()
    noticed = sum(bool(edit.caught) for edit in EDITS)
    assert f"put {len(EDITS)} single faults" in text
    assert f"report {noticed} of them under every schedule" in text
    assert f"the other {len(EDITS) - noticed}." in text
