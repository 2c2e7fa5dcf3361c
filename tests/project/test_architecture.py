"""The house: imports point one way, and a fact is where it belongs."""

import ast
from graphlib import TopologicalSorter
from pathlib import Path

import pytest
from paths import ROOT

ROOMS: dict[str, set[str]] = {}
"""The rooms that each room may import."""

for room, below in {
    "spec": "",
    "emulator": "",
    "calls": "spec",
    "tensors": "spec",
    "backends": "calls emulator spec",
    "dispatch": "backends calls spec",
    "quantization": "spec",
    "ops": "dispatch calls quantization tensors spec",
    "ahead": "ops dispatch backends tensors spec",
    "layers": "ahead ops calls tensors spec",
    "checkpoints": "layers ops calls quantization tensors spec",
    "demo": "checkpoints layers ops dispatch backends tensors spec",
    "tuning": "ops calls backends spec",
    "bench": "demo tuning checkpoints layers ops dispatch backends calls quantization tensors spec",
    "integrations": "checkpoints layers ahead ops backends tensors spec",
    "cli": "bench demo tuning checkpoints layers ahead ops dispatch backends tensors spec",
}.items():
    ROOMS[room] = set(below.split())

EMULATOR = {
    # room or file of the emulator: the others it may import
    "c_library": set(),
    "hazards": set(),
    "lanes": set(),
    "ptx": {"hazards"},
    "engine": {"c_library", "hazards", "lanes"},
    "memory": {"hazards", "lanes", "ptx", "engine"},
    "machine": {"hazards", "lanes", "ptx", "engine", "memory"},
    "isa": {"hazards", "lanes", "ptx", "engine", "memory", "machine"},
    "tma": {"hazards", "lanes", "ptx", "memory", "machine", "isa"},
    "tensor_cores": {"hazards", "lanes", "ptx", "engine", "memory", "machine", "isa"},
    "instructions": {"isa", "tma", "tensor_cores"},
    "launch": {"c_library", "hazards", "ptx", "memory", "machine", "isa", "instructions"},
}


def _imports(path: Path) -> list[str]:
    names = []
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            names += [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}: imports are absolute"
            names.append(node.module or "")
            if node.module and node.module.split(".")[0] == "nvfp4":  # it may be a module
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


def test_the_emulator_imports_nothing_of_the_package_but_itself():
    """It also runs PTX that is not ours, and nvfp4 itself is not needed for that."""
    assert _files("emulator")
    for path in _files("emulator"):
        ours = [name.split(".") for name in _imports(path) if name.split(".")[0] == "nvfp4"]
        assert all(name[:2] == ["nvfp4", "emulator"] for name in ours), path


@pytest.mark.parametrize("room", EMULATOR)
def test_the_emulators_rooms_import_one_way(room):
    files = _files(f"emulator/{room}") or [ROOT / "emulator" / f"{room}.py"]
    for path in files:
        for name in _imports(path):
            if name.startswith("nvfp4.emulator."):
                other = name.split(".")[2]
                assert other in EMULATOR[room] | {room}, f"{path} imports {name}"


def test_every_part_of_the_emulator_is_a_room_with_rules():
    parts = {path.stem for path in (ROOT / "emulator").iterdir() if path.suffix in ("", ".py")}
    assert parts - {"__init__", "__pycache__"} == set(EMULATOR)


def test_no_modules_of_the_emulator_import_each_other_in_a_circle():
    """Imports for types alone count too."""
    modules = {}
    for path in _files("emulator"):
        parts = path.relative_to(ROOT).with_suffix("").parts
        modules[".".join(("nvfp4", *parts)).removesuffix(".__init__")] = path
    del modules["nvfp4.emulator"]  # what every module of it imports ptx from
    imports = {module: set(_imports(path)) & modules.keys() for module, path in modules.items()}
    assert "nvfp4.emulator.machine.warp" in imports["nvfp4.emulator.isa.builder"]
    TopologicalSorter(imports).prepare()


def test_tune_imported_the_benchmarks():
    """No command but bench itself imports the benchmarks."""
    commands = [path for path in _files("cli") if path.name not in ("__init__.py", "bench.py")]
    assert len(commands) > 5
    for path in commands:
        assert not [name for name in _imports(path) if name.startswith("nvfp4.bench")], path


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
