"""A cache of compiled code on disk: one file per key, shared by processes and safe among them.

An entry is a zip archive, whose checksums tell a damaged one from a whole one. An entry that is
damaged or cannot be read is a miss. It is written beside its place and renamed into it, so that
nobody reads half of one. A lock per key lets one process compile what others wait for. Where
nothing can be written, each process compiles for itself and says so.
"""

import hashlib
import io
import os
import secrets
import zipfile
from collections.abc import Callable, Mapping
from contextlib import ExitStack, suppress
from pathlib import Path

from filelock import FileLock

from nvfp4.backends.cutedsl.runtime.cache_folder import directory, reason, warn_once

__all__ = ["Entry", "directory", "get", "read"]

Entry = Mapping[str, bytes]


def get(key: str, make: Callable[[], Entry]) -> Entry:
    """The entry of `key`, made and kept if there is no whole one."""
    path = _path(key)
    if (entry := _read(path, key)) is not None:
        return entry
    with ExitStack() as held:
        # Without a lock the worst is that two processes make the same entry.
        with suppress(OSError, NotImplementedError):
            held.enter_context(FileLock(path.with_suffix(".lock")))
        if (entry := _read(path, key)) is None:
            entry = make()
            try:
                _publish(path, key, entry)
            except OSError as error:
                warn_once(str(path.parent), reason(error))
    return entry


def read(key: str) -> Entry | None:
    """The entry of `key`; None if there is none that is whole and can be read."""
    return _read(_path(key), key)


def _path(key: str) -> Path:
    return directory() / f"{hashlib.sha256(key.encode()).hexdigest()}.zip"


def _read(path: Path, key: str) -> Entry | None:
    try:
        with zipfile.ZipFile(path) as archive:
            entry = {name: archive.read(name) for name in archive.namelist()}
    except Exception:  # a damaged archive fails in many ways
        return None
    # Two keys may share a file name only by a collision; a file may lie there by accident.
    return entry if entry.pop("key", b"").decode(errors="replace") == key else None


def _publish(path: Path, key: str, entry: Entry) -> None:
    content = io.BytesIO()
    with zipfile.ZipFile(content, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, data in {"key": key.encode(), **entry}.items():
            archive.writestr(name, data)
    unfinished = path.with_name(f"{path.stem}.{secrets.token_hex(8)}.tmp")
    try:
        with open(unfinished, "xb", opener=_readable_by_all) as file:
            file.write(content.getvalue())
        os.replace(unfinished, path)
    except BaseException:
        with suppress(OSError):
            unfinished.unlink()
        raise


def _readable_by_all(path: str, flags: int) -> int:
    return os.open(path, flags, mode=0o644)
