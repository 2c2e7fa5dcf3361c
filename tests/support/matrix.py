"""Execute the kernels for every architecture with several releases of Triton; record the results.

    python tests/support/matrix.py [--triton 3.9.0 ...] [--sm 80 ...] [--all]

Each release is a folder .triton/<release>, or the installed one. Every kernel runs in the emulator
and must give the reference's bits: in one form, or with --all in every form. What an earlier run
has recorded of other releases and architectures is kept.
"""

import argparse
import json
import os
import platform
import subprocess
import sys
from collections.abc import Iterator
from importlib.metadata import version
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parents[2]
RECORD = ROOT / "bench" / "results" / "emulated_matrix.json"
RELEASES = ("3.6.0", "3.7.1", "3.8.0", "3.9.0")


def run_ops(sm: int, every: bool) -> Iterator[dict[str, Any]]:
    """Run an architecture's forms in this process: a result for each backend and op."""
    from kernel_forms import FORMS, SMALL, cutedsl_forms, forms_on

    from nvfp4.backends import cutedsl, triton

    chosen = [f for f in forms_on(sm) if every or f.name in SMALL]
    for op in sorted({f.op for f in FORMS}):
        yield run_op(triton.BACKEND, op, sm, [f for f in chosen if f.op == op])
    for form in cutedsl_forms():
        yield run_op(cutedsl.BACKEND, form.op, sm, [form])


def run_op(backend: Any, op: str, sm: int, forms: list[Any]) -> dict[str, Any]:
    from cases import same_bits
    from kernel_forms import one_nan

    import nvfp4
    from nvfp4.backends.problem import Problem
    from nvfp4.backends.target import Target

    result: dict[str, Any] = {"backend": backend.name, "sm": sm, "op": op}
    if reasons := backend.reasons(Problem(op, Target("cpu", sm))):
        return result | {"refused": "; ".join(reasons)}
    failed = {}
    for form in forms:
        try:
            with nvfp4.emulate(sm=sm):
                got = form.run(backend.name)
            for mine, theirs in zip(got, form.run("reference"), strict=True):
                same_bits(one_nan(mine), one_nan(theirs))
        except Exception as error:
            failed[form.name] = f"{type(error).__name__}: {str(error).splitlines()[0]}"
    return result | {"forms": len(forms), "failed": failed}


def tested_commit() -> str:
    """Name the commit, and whether anything but the record differs from it."""

    def git(*arguments: str) -> str:
        return subprocess.run(
            ["git", *arguments], cwd=ROOT, capture_output=True, text=True
        ).stdout.strip()

    changed = git("status", "--porcelain", "--untracked-files=no", ".", f":!{RECORD}")
    return git("describe", "--always") + ("-dirty" if changed else "")


def record(release: str, results: list[dict[str, Any]], commit: str) -> None:
    """Add a release's results to the record, in place of earlier ones of the same cells."""
    known = json.loads(RECORD.read_text())["runs"] if RECORD.exists() else []
    new = [{"triton": release, "commit": commit, **result} for result in results]

    def cell(run: dict[str, Any]) -> tuple[Any, ...]:
        return run["backend"], run["op"], run["sm"], run["triton"]

    runs = {cell(run): run for run in (*known, *new)}
    facts = {
        "about": "every kernel executed in the emulator, against the reference's bits",
        "command": "make matrix",
        "machine": {
            "cpu": f"{platform.machine()}, {os.cpu_count()} cores",
            "python": platform.python_version(),
            "torch": version("torch"),
        },
        "runs": [runs[key] for key in sorted(runs)],
    }
    RECORD.write_text(json.dumps(facts, indent=1) + "\n")


def child(release: str, sm: int, every: bool) -> list[dict[str, Any]]:
    """Run one architecture with one release, in a process of its own."""
    folder = ROOT / ".triton" / release
    paths = [str(ROOT), str(ROOT / "tests" / "support"), os.environ.get("PYTHONPATH", "")]
    if folder.exists():
        paths.insert(0, str(folder))
    environment = os.environ | {
        "PYTHONPATH": os.pathsep.join(filter(None, paths)),
        "TRITON_INTERPRET": "0",
    }
    command = [sys.executable, __file__, "--child", str(sm), *(["--all"] if every else [])]
    done = subprocess.run(command, env=environment, capture_output=True, text=True)
    if done.returncode:
        raise RuntimeError(f"Triton {release}, sm_{sm}: {done.stderr[-2000:]}")
    results = json.loads(done.stdout.splitlines()[-1])
    if results["triton"] != release:
        raise RuntimeError(f"needs .triton/{release} or Triton {release}, got {results['triton']}")
    return results["results"]


def main() -> None:
    sys.path.insert(0, str(ROOT / "tests" / "support"))
    from nvfp4.backends.emulation import ARCHITECTURES

    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--triton", nargs="+", default=RELEASES)
    parser.add_argument("--sm", nargs="+", type=int, default=ARCHITECTURES)
    parser.add_argument("--all", action="store_true")
    parser.add_argument("--child", type=int)
    options = parser.parse_args()
    if options.child:
        import triton

        results = list(run_ops(options.child, options.all))
        print(json.dumps({"triton": triton.__version__, "results": results}))
        return
    commit = tested_commit()
    for release in options.triton:
        for sm in options.sm:
            results = child(release, sm, options.all)
            record(release, results, commit)
            for result in results:
                for form, why in result.get("failed", {}).items():
                    print(f"Triton {release}, sm_{sm}: {form}: {why}", flush=True)
            print(f"Triton {release}, sm_{sm}: done", flush=True)


if __name__ == "__main__":
    main()
