"""The folder that compiled code is kept in and loaded from.

What is in it is executed. So it has to belong to the user or to root, and nobody else may write to
it. A process that has no such folder uses a private one, which is gone when it ends.
"""

import functools
import os
import shutil
import stat
import tempfile
import warnings
from multiprocessing.util import Finalize
from pathlib import Path

from nvfp4.backends.environment import CACHE_DIR, cache_folder


def directory() -> Path:
    """The folder, made if it is not there: the configured one, or a private one in its place."""
    try:
        folder = cache_folder()
    except RuntimeError as error:  # the user has no home
        warn_once("~/.cache/nvfp4", str(error))
        return private()
    try:
        folder.mkdir(mode=0o755, parents=True, exist_ok=True)
        problem = _problem(folder)
    except FileExistsError:
        problem = "it is not a folder"
    except OSError as error:
        problem = reason(error)
    if not problem:
        return folder
    warn_once(str(folder), problem)
    return private()


def private() -> Path:
    """A folder that only this process uses; removed when it ends."""
    return _private(os.getpid())


def warn_once(folder: str, problem: str) -> None:
    """Say that compiled code is not kept, and why: once a process for each folder and reason."""
    _warn(os.getpid(), folder, problem)


def reason(error: OSError) -> str:
    """What went wrong, without the name of the file: it is the same for all entries."""
    return error.strerror or str(error)


def _problem(folder: Path) -> str:
    """Why code from the folder must not be run; empty if it may."""
    status = folder.stat()
    if status.st_uid not in (0, os.geteuid()):
        return f"it belongs to the user with id {status.st_uid}"
    if status.st_mode & (stat.S_IWGRP | stat.S_IWOTH):
        return f"others may write to it (mode {stat.S_IMODE(status.st_mode):04o})"
    return ""


@functools.cache
def _private(pid: int) -> Path:
    folder = Path(tempfile.mkdtemp(prefix="nvfp4-"))
    # Unlike atexit it also runs in processes that multiprocessing forks, and only in this process.
    Finalize(None, shutil.rmtree, (folder,), {"ignore_errors": True}, exitpriority=0)
    return folder


@functools.cache
def _warn(pid: int, folder: str, problem: str) -> None:
    warnings.warn(
        f"nvfp4: compiled kernels are not kept in {folder}: {problem}. Set {CACHE_DIR} to a "
        "folder that you own and that nobody else may write to.",
        RuntimeWarning,
        stacklevel=2,
    )
