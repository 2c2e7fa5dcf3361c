"""Triton's cache folder, replaced by a private one where it cannot be written.

Triton raises where it cannot write its cache. Here that costs a compilation, never a call.
"""

import functools
import os
import shutil
import tempfile
import warnings
from multiprocessing.util import Finalize

from triton import knobs


def ensure_usable() -> None:
    """Give Triton a private folder, and warn once, if its own cannot be written."""
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
    # Unlike atexit, Finalize also runs in processes that multiprocessing forked.
    Finalize(None, shutil.rmtree, (private,), {"ignore_errors": True}, exitpriority=0)
    knobs.cache.dir = private
    warnings.warn(
        f"nvfp4: Triton's kernels are not kept in {folder}: {reason}. Set TRITON_CACHE_DIR to a "
        "folder that can be written.",
        RuntimeWarning,
        stacklevel=2,
    )
