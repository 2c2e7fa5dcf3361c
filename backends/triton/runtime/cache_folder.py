"""The folder in which Triton keeps compiled kernels: one that can be written, or a private one.

Triton itself raises where it cannot write. A call must not fail for that: it costs a compilation.
"""

import functools
import os
import shutil
import tempfile
import warnings
from multiprocessing.util import Finalize

from triton import knobs


def ensure_usable() -> None:
    """Give Triton a private folder, and say so once, if files cannot be made in its own."""
    _ensure_usable(knobs.cache.dir, os.getpid())


@functools.cache
def _ensure_usable(folder: str, pid: int) -> None:
    try:
        os.makedirs(folder, exist_ok=True)
        with tempfile.TemporaryFile(dir=folder):
            return
    except OSError as error:
        reason = error.strerror or str(error)
    private = tempfile.mkdtemp(prefix="nvfp4-triton-")
    # Unlike atexit it also runs in processes that multiprocessing forks, and only in this process.
    Finalize(None, shutil.rmtree, (private,), {"ignore_errors": True}, exitpriority=0)
    knobs.cache.dir = private
    warnings.warn(
        f"nvfp4: Triton's kernels are not kept in {folder}: {reason}. Set TRITON_CACHE_DIR to a "
        "folder that can be written.",
        RuntimeWarning,
        stacklevel=2,
    )
