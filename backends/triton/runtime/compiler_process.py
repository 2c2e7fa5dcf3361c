"""A process that compiles to PTX for one that interprets.

Triton decides at import whether a process compiles or interprets: TRITON_INTERPRET.

    python -m nvfp4.backends.triton.runtime.compiler_process < requests > answers

is the process. Both streams hold pickles; an answer that is text says what went wrong.
"""

import atexit
import functools
import os
import pickle
import subprocess
import sys
import threading
from typing import Any

from nvfp4.backends.triton.runtime.process import compiling_environment


class CompilerProcess:
    """The process, which starts with the first request and ends with this one."""

    def __init__(self) -> None:
        self.lock = threading.Lock()
        self.process = subprocess.Popen(
            [sys.executable, "-m", __name__],
            env=compiling_environment(),
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
        )
        atexit.register(self.process.kill)

    def ask(self, request: bytes) -> Any:
        """Return the answer to a request of ptx.py."""
        assert self.process.stdin is not None and self.process.stdout is not None
        with self.lock:
            pickle.dump(request, self.process.stdin)
            self.process.stdin.flush()
            return pickle.load(self.process.stdout)


def compiler() -> CompilerProcess:
    """The process that compiles for this one; a fork has its own."""
    return _compiler_of(os.getpid())


@functools.cache
def _compiler_of(pid: int) -> CompilerProcess:
    return CompilerProcess()


def main() -> None:
    from nvfp4.backends.triton.runtime.ptx import compile_request  # it imports this module

    answers = os.fdopen(os.dup(1), "wb")
    os.dup2(2, 1)  # whatever else is printed, by libraries too, is no answer
    while True:
        try:
            request = pickle.load(sys.stdin.buffer)
        except EOFError:
            return
        try:
            answer = pickle.dumps(compile_request(request))
        except Exception as error:
            answer = pickle.dumps(f"{type(error).__name__}: {error}")
        answers.write(answer)
        answers.flush()


if __name__ == "__main__":
    main()
