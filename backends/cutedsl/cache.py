"""A cache of compiled kernels on disk: one file per key, shared by processes and safe among them.

An entry is a zip archive, whose checksums tell a damaged one from a whole one: a damaged entry is a
miss. It is written beside its place and renamed into it, so that nobody reads half of one. A lock
per key lets one process compile what others wait for.
"""

import hashlib
import io
import os
import zipfile
from collections.abc import Callable, Mapping
from pathlib import Path
from tempfile import NamedTemporaryFile

from filelock import FileLock

ENVIRONMENT = "NVFP4_CACHE_DIR"
"""Where compiled kernels are kept; default ~/.cache/nvfp4."""

Entry = Mapping[str, bytes]


def directory() -> Path:
    cache = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
    return Path(os.environ.get(ENVIRONMENT) or Path(cache) / "nvfp4")


def _path(key: str) -> Path:
    return directory() / f"{hashlib.sha256(key.encode()).hexdigest()}.zip"


def get(key: str, make: Callable[[], Entry]) -> Entry:
    """The entry of `key`, made and kept if there is no whole one."""
    path = _path(key)
    if (entry := read(key)) is not None:
        return entry
    path.parent.mkdir(parents=True, exist_ok=True)
    with FileLock(path.with_suffix(".lock")):
        if (entry := read(key)) is None:
            entry = make()
            _publish(path, key, entry)
    return entry


def read(key: str) -> Entry | None:
    """The entry of `key`; None if there is none, or a damaged one."""
    try:
        with zipfile.ZipFile(_path(key)) as archive:
            entry = {name: archive.read(name) for name in archive.namelist()}
    except Exception:  # a damaged archive fails in many ways
        return None
    # Two keys may share a file name only by a collision; a file may be somebody's by accident.
    return entry if entry.pop("key", b"").decode(errors="replace") == key else None


def _publish(path: Path, key: str, entry: Entry) -> None:
    content = io.BytesIO()
    with zipfile.ZipFile(content, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, data in {"key": key.encode(), **entry}.items():
            archive.writestr(name, data)
    with NamedTemporaryFile(dir=path.parent, prefix=path.stem, delete=False) as file:
        file.write(content.getvalue())
    os.replace(file.name, path)
