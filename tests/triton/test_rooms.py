"""The Triton backend's rooms: imports go one way, and private names stand in compat.py."""

import ast
import importlib
import os
import pkgutil
import subprocess
import sys
from pathlib import Path

import pytest

import nvfp4.backends.triton as backend

PACKAGE = "nvfp4.backends.triton"
FOLDER = Path(backend.__file__).parent
ROOMS = ("runtime", "device", "gemm", "hopper", "")
"""From the lowest to the operators; a room imports itself and those before it."""


def _modules() -> list[str]:
    found = pkgutil.walk_packages(backend.__path__, f"{PACKAGE}.")
    return [module.name for module in found if not module.ispkg]


def _tree(module: str) -> ast.Module:
    path = FOLDER.joinpath(*module.removeprefix(f"{PACKAGE}.").split("."))
    return ast.parse(path.with_suffix(".py").read_text())


def _room(module: str) -> str:
    first = module.removeprefix(PACKAGE).strip(".").split(".")[0]
    return first if first in ROOMS else ""


@pytest.mark.parametrize("module", _modules())
def test_rooms_import_one_way(module):
    for node in ast.walk(_tree(module)):
        if isinstance(node, ast.ImportFrom) and (node.module or "").startswith(PACKAGE):
            names = [f"{node.module}.{alias.name}" for alias in node.names]
            rooms = {_room(name) for name in names}
            assert all(ROOMS.index(room) <= ROOMS.index(_room(module)) for room in rooms), names


def _is_private(name: str) -> bool:
    return name.startswith("_") and not name.startswith("__")


@pytest.mark.parametrize("module", sorted({*_modules()} - {f"{PACKAGE}.runtime.compat"}))
def test_private_names_of_triton_stand_in_compat(module):
    """They are neither imported nor read as attributes, except of `self`."""
    for node in ast.walk(_tree(module)):
        if isinstance(node, ast.ImportFrom) and (node.module or "").startswith("triton"):
            names = [*node.module.split("."), *(alias.name for alias in node.names)]
            assert not any(map(_is_private, names)), names
        elif isinstance(node, ast.Attribute):
            of_self = isinstance(node.value, ast.Name) and node.value.id in ("self", "os")
            of_a_tuple = node.attr in ("_replace", "_asdict")
            assert of_self or of_a_tuple or not _is_private(node.attr), ast.unparse(node)
            assert ast.unparse(node) != "object.__new__"


UNHASHED = f"""
import importlib, pkgutil, sys
from triton.runtime import JITFunction
from {PACKAGE}.runtime.launch import hash_all
import {PACKAGE} as backend

hash_all()
for module in pkgutil.walk_packages(backend.__path__, "{PACKAGE}."):
    assert module.name in sys.modules, module.name
    for name, value in vars(importlib.import_module(module.name)).items():
        assert not isinstance(value, JITFunction) or value.hash, (module.name, name)
print(sum(isinstance(v, JITFunction) for v in vars(sys.modules["{PACKAGE}.hopper.mm"]).values()))
"""


def test_functions_of_every_room_are_hashed():
    """What a process finds in Triton's cache does not depend on what it ran before."""
    environment = {**os.environ, "TRITON_INTERPRET": "0", "PYTHONPATH": os.pathsep.join(sys.path)}
    line = [sys.executable, "-c", UNHASHED]
    done = subprocess.run(line, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-2000:]
    assert int(done.stdout) > 10


def test_every_operator_is_a_module_with_its_launcher():
    for op in backend.BACKEND.ops:
        assert callable(getattr(importlib.import_module(f"{PACKAGE}.{op}"), op))
