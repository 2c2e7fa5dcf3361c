"""Private names of CuTe DSL and TVM-FFI stand in one file, which says the versions they are in."""

import ast
from pathlib import Path

from paths import ROOT

ROOM = ROOT / "backends" / "cutedsl"
COMPAT = ROOM / "runtime" / "compat.py"


def private_names(path: Path) -> list[str]:
    """Modules imported by a private path, and private attributes of anything but self."""
    found = []
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            found += [alias.name for alias in node.names if "._" in alias.name]
        elif isinstance(node, ast.ImportFrom) and "._" in (node.module or ""):
            found.append(node.module or "")
        elif isinstance(node, ast.Attribute) and node.attr.startswith("_"):
            owner = node.value
            ours = isinstance(owner, ast.Name) and owner.id == "self" or node.attr == "_replace"
            found += [] if ours else [node.attr]
    return found


def test_private_names_of_cute_dsl_stand_in_one_file():
    kernels = [
        path for room in (ROOM, ROOM / "gemm", ROOM / "runtime") for path in room.glob("*.py")
    ]
    assert COMPAT in kernels and private_names(COMPAT)
    assert {path.name: private_names(path) for path in kernels if path != COMPAT} == {
        path.name: [] for path in kernels if path != COMPAT
    }
