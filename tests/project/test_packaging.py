"""What an installation needs and a checkout does not show. make wheel tests the installation."""

import subprocess
import sys

from paths import ROOT

ROOMS = [path for path in (ROOT / "nvfp4").iterdir() if path.is_dir() and path.name[0] != "_"]


def test_a_wheel_without_the_gemm():
    """A folder of modules that is no package is left out of the wheel."""
    folders = {path.parent for room in ROOMS for path in room.resolve().rglob("*.py")}
    assert len(folders) > 10
    assert [folder for folder in folders if not (folder / "__init__.py").exists()] == []


def test_layers_were_not_there_after_import_nvfp4():
    code = "import nvfp4; print(nvfp4.layers.Linear.__name__)"
    run = subprocess.run(
        [sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True
    )
    assert run.stdout == "Linear\n"
