"""The wall between ops and backends: what a launcher takes is declared, and mypy checks it."""

import inspect
import os
import subprocess
import sys
from collections.abc import Iterator

import pytest
import torch
from paths import ROOT

import nvfp4
from nvfp4 import calls, checkpoints
from nvfp4.backends.backend import Backend
from nvfp4.calls import Mm, schema_of
from nvfp4.dispatch import BACKENDS, fill, registry, select

RIGHT = """
from torch import Tensor

from nvfp4.calls import Mm, Packed, takes


@takes(Mm.prepared)
def mm(call: Mm, out: Tensor) -> None: ...
"""

WRONG = {
    "another call": ("call: Mm, out: Tensor", "call: Packed, out: Tensor"),
    "another order": ("call: Mm, out: Tensor", "out: Tensor, call: Mm"),
    "other outputs": ("call: Mm, out: Tensor", "call: Mm, out: Packed"),
    "an argument more": ("call: Mm, out: Tensor", "call: Mm, out: Tensor, tile: int"),
    "no outputs": ("call: Mm, out: Tensor", "call: Mm"),
}


def test_a_launcher_with_wrong_arguments_passed_the_type_check(tmp_path):
    pytest.importorskip("mypy")
    sources = {"right": RIGHT} | {fault: RIGHT.replace(*change) for fault, change in WRONG.items()}
    files = {fault: tmp_path / f"{fault.replace(' ', '_')}.py" for fault in sources}
    for fault, file in files.items():
        file.write_text(sources[fault])
    command = [sys.executable, "-m", "mypy", "--config-file", ROOT / "setup.cfg", *files.values()]
    said = subprocess.run(command, cwd=ROOT, capture_output=True, text=True).stdout
    assert f"Found {len(WRONG)} errors in {len(WRONG)} files" in said, said
    for fault, file in files.items():
        errors = [line for line in said.splitlines() if f"{file.name}:" in line]
        assert any("Argument 1 has incompatible type" in e for e in errors) == (fault != "right")


@pytest.mark.parametrize("registered", BACKENDS, ids=lambda b: b.name)
def test_every_launcher_declares_what_it_takes(registered):
    """W4A16's launchers take the call of linear and of moe; all others the op's."""
    known = {"linear": "Linear", "weight_only_linear": "Linear", "weight_only_moe": "Moe"}
    for op in registered.ops:
        name = known.get(op, "".join(part.title() for part in op.split("_")))
        try:
            launcher = registered.launcher(op)
        except ModuleNotFoundError as error:
            if str(error.name).startswith("nvfp4"):
                raise  # a module of our own, which a package may lack
            pytest.skip(f"{registered.name} needs {error.name}, got none")
        assert launcher.takes == getattr(calls, name).prepared, op


@pytest.mark.slow
def test_a_new_op_is_a_declaration_and_a_launcher(tmp_path):
    """The graph that torch compiled and kept names a parameter, and is not loaded when the
    parameter has another name. In processes of their own, since torch keeps a registered op.
    """
    text = (ROOT / "tests" / "support" / "toy_op.py").read_text()
    own = {"TORCHINDUCTOR_CACHE_DIR": str(tmp_path), "PYTHONPATH": str(ROOT)}
    for number, version in enumerate((text, text.replace("times", "by"))):
        script = tmp_path / f"version_{number}.py"
        script.write_text(version)
        done = subprocess.run(
            [sys.executable, script], env=os.environ | own, capture_output=True, text=True
        )
        assert done.returncode == 0, done.stderr
    assert any((tmp_path / "fxgraph").iterdir()), "nothing was kept, so nothing was tested"


def test_a_new_backend_is_a_folder_and_a_line(monkeypatch, tmp_path):
    """Here the folder is a module, and the line is the registry's tuple."""
    package = tmp_path / "toy"
    package.mkdir()
    (package / "__init__.py").write_text("")
    (package / "mm.py").write_text(RIGHT.strip().replace(": ...", ":\n    out.fill_(7)") + "\n")
    monkeypatch.setattr("nvfp4.backends.__path__", [*_backends_path(), str(tmp_path)])
    toy = Backend("toy", ("mm",), needs=lambda problem: [], only_by_name=lambda problem: "")
    monkeypatch.setattr(select, "BACKENDS", (toy, *registry.BACKENDS))
    one = torch.ones(128, 4).to(torch.float8_e4m3fn)
    data = torch.zeros(2, 32, dtype=torch.uint8)
    out = torch.empty(2, 2)
    fill(Mm(data, data, one, one, torch.ones(1), backend="toy"), out)
    assert (out == 7).all()


def _backends_path() -> list[str]:
    import nvfp4.backends

    return list(nvfp4.backends.__path__)


def test_a_schema_is_derived_from_the_fields():
    want = (
        "(Tensor a, Tensor b, Tensor a_scales, Tensor b_scales, Tensor alpha, "
        "Tensor? row_scale=None, Tensor? bias=None, ScalarType? out_dtype=None, "
        'str backend="") -> Tensor'
    )
    assert schema_of(Mm) == want


@pytest.mark.parametrize(
    "name", [n for n in calls.__all__ if hasattr(getattr(calls, n), "outputs")]
)
def test_activation_stands_before_backend_which_stands_last(name):
    fields = getattr(calls, name)._fields
    assert fields[-1] == "backend"
    assert "activation" not in fields or fields[-2] == "activation"


def test_the_limit_of_a_gated_linear_unit_had_two_names():
    kinds = [getattr(calls, name) for name in calls.__all__]
    fields = {field for kind in kinds for field in getattr(kind, "_fields", ())}
    assert {field for field in fields if "limit" in field} == {"swiglu_limit"}


def _public() -> Iterator[tuple[str, list[str]]]:
    """The parameters of each public function and method that has a backend."""
    for room in (nvfp4, nvfp4.layers, checkpoints):
        for name in room.__all__:
            thing = getattr(room, name)
            methods = vars(thing) if inspect.isclass(thing) else {"": thing}
            for method, function in methods.items():
                function = getattr(function, "__func__", function)
                if not inspect.isfunction(function):
                    continue
                parameters = list(inspect.signature(function).parameters)
                if "backend" in parameters:
                    yield f"{name}.{method}", parameters


@pytest.mark.parametrize("name, parameters", list(_public()), ids=str)
def test_backend_stands_last_in_every_signature(name, parameters):
    assert parameters[-1] == "backend"
    assert "activation" not in parameters or parameters[-2] == "activation"
