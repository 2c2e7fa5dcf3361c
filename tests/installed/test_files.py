"""What git tracks is what the sdist and the wheels hold, and nothing else."""

import subprocess
import tarfile
import zipfile
from pathlib import Path

import pytest


def _one(pattern: str) -> Path:
    (path,) = Path.cwd().glob(pattern)
    return path


@pytest.fixture(scope="module")
def tracked(checkout) -> dict[str, bool]:
    """Every path that git tracks, and whether it is a link."""
    listed = subprocess.run(
        ["git", "ls-files", "--stage"], cwd=checkout, capture_output=True, text=True, check=True
    )
    lines = (line.split("\t") for line in listed.stdout.splitlines())
    return {path: about.startswith("120000") for about, path in lines}


@pytest.fixture(scope="module")
def package(tracked) -> set[str]:
    """The package's files as they are imported: nvfp4/spec is a link to spec, and so on."""
    rooms = {Path(path).name for path, link in tracked.items() if link}
    assert "backends" in rooms and "spec" in rooms
    own = {path for path, link in tracked.items() if path.startswith("nvfp4/") and not link}
    return own | {f"nvfp4/{path}" for path in tracked if Path(path).parts[0] in rooms}


@pytest.mark.parametrize("wheel", ["dist/*.whl", "dist-checkout/*.whl"], ids=["sdist", "checkout"])
def test_a_wheel_lacks_a_file_or_has_a_stray_one(wheel, package):
    """Built from the sdist and from the checkout."""
    names = set(zipfile.ZipFile(_one(wheel)).namelist())
    assert {name for name in names if ".dist-info/" not in name} == package


def test_the_sdist_lacks_a_file_or_has_a_stray_one(tracked, package):
    """It has the links' files twice: where git has them and where they are imported from."""
    with tarfile.open(_one("dist/*.tar.gz")) as archive:
        members = archive.getmembers()
    names = {member.name.split("/", 1)[1] for member in members if not member.isdir()}
    made = {name for name in names if name == "PKG-INFO" or name.startswith("nvfp4.egg-info/")}
    assert not any(member.issym() or member.islnk() for member in members)
    assert names - made == package | {path for path, link in tracked.items() if not link}
