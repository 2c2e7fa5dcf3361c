"""The house: imports point one way, and a fact is where it belongs."""

import ast
from pathlib import Path

import pytest
from paths import ROOT

ROOMS = {
    # room: the rooms it may import
    "spec": set(),
    "backends": {"spec"},
    "dispatch": {"backends", "spec"},
    "ops": {"dispatch", "backends", "spec"},
    "layers": {"ops", "spec"},
    "checkpoints": {"layers", "ops", "spec"},
    "demo": {"checkpoints", "layers", "ops", "dispatch", "backends", "spec"},
    "bench": {"layers", "ops", "dispatch", "backends", "spec"},
    "integrations": {"checkpoints", "layers", "ops", "backends", "spec"},
    "cli": {"bench", "checkpoints", "demo", "layers", "ops", "dispatch", "backends", "spec"},
}


def _imports(path: Path) -> list[str]:
    names = []
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            names += [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}: imports are absolute"
            names.append(node.module or "")
            if node.module in ("nvfp4", "nvfp4.backends"):
                names += [f"{node.module}.{alias.name}" for alias in node.names]
    return names


def _files(room: str) -> list[Path]:
    return sorted((ROOT / room).rglob("*.py"))


@pytest.mark.parametrize("room", ROOMS)
def test_imports_point_one_way(room):
    assert _files(room)
    for path in _files(room):
        for name in _imports(path):
            top, *rest = name.split(".")
            assert top not in ROOMS, f"{path}: import nvfp4.{name}, not {name}"
            if top == "nvfp4" and rest and rest[0] in ROOMS:
                assert rest[0] in ROOMS[room] | {room}, f"{path} imports {name}"


def test_spec_imports_torch_and_einops_alone():
    allowed = {"torch", "einops", "nvfp4", "math", "collections", "functools", "typing"}
    for path in _files("spec"):
        assert {name.split(".")[0] for name in _imports(path)} <= allowed, path


def test_no_backend_imports_another():
    backends = {
        path.name for path in (ROOT / "backends").iterdir() if (path / "__init__.py").exists()
    }
    for backend in backends:
        for path in _files(f"backends/{backend}"):
            for name in _imports(path):
                if name.startswith("nvfp4.backends."):
                    assert name.split(".")[2] not in backends - {backend}, f"{path} imports {name}"


def test_kernels_are_imported_when_they_are_called():
    """import nvfp4 costs torch alone: neither Triton's kernels nor CuTe DSL come with it."""
    import subprocess
    import sys

    kernels = ("triton.language", "cutlass", "transformers")
    code = f"import sys, nvfp4; print([m for m in sys.modules if m.startswith({kernels})])"
    out = subprocess.run(
        [sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True
    )
    loaded = set(ast.literal_eval(out.stdout))
    bare = subprocess.run(
        [sys.executable, "-c", code.replace(", nvfp4", ", torch")],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=True,
    )
    assert loaded == set(ast.literal_eval(bare.stdout))


def test_commands_import_what_they_need_when_they_run():
    """python -m nvfp4 info works without the packages of checkpoints and of the demo."""
    import subprocess
    import sys

    extras = ("safetensors", "transformers", "huggingface_hub", "accelerate", "gguf")
    code = f"import sys, nvfp4.cli; print([m for m in sys.modules if m.startswith({extras})])"
    out = subprocess.run(
        [sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True
    )
    assert ast.literal_eval(out.stdout) == []
