"""Execute the kernels for every architecture with several releases of Triton; record the results.

    python tests/support/matrix.py [--triton 3.9.0 ...] [--sm 80 ...] [--all]
    python tests/support/matrix.py --gpu [--all]  # on this machine's GPU, with its Triton

Each release is a folder .triton/<release>, or the installed one. Every kernel runs in the emulator
and must give the reference's bits: in one form, or with --all in every form. What an earlier run
has recorded of other releases and architectures is kept. What a GPU ran has a record of its own.
"""

import argparse
import json
import os
import platform
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from importlib.metadata import version
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parents[2]
RESULTS = ROOT / "bench" / "results"
RECORD = RESULTS / "emulated_matrix.json"
RELEASES = ("3.6.0", "3.7.1", "3.8.0", "3.9.0")


def run_ops(sm: int, every: bool) -> Iterator[dict[str, Any]]:
    """Run an architecture's forms in this process: a result for each backend and op."""
    from kernel_forms import FORMS, SMALL, cutedsl_forms, forms_on

    from nvfp4.backends import cutedsl, triton
    from nvfp4.backends.target import Target

    target = Target("cpu", sm)
    chosen = [f for f in forms_on(sm) if every or f.name in SMALL]
    for op in sorted({f.op for f in FORMS}):
        yield run_op(triton.BACKEND, op, target, [f for f in chosen if f.op == op])
    for form in cutedsl_forms():
        yield run_op(cutedsl.BACKEND, form.op, target, [form])


@contextmanager
def placed(target: Any) -> Iterator[None]:
    """Put new tensors on the target's device, and emulate its architecture on a CPU."""
    import torch

    import nvfp4

    with (
        torch.device(target.device),
        nvfp4.emulate(sm=target.sm) if target.device == "cpu" else nullcontext(),
    ):
        yield


def run_op(backend: Any, op: str, target: Any, forms: list[Any]) -> dict[str, Any]:
    from cases import same_bits
    from kernel_forms import one_nan

    from nvfp4.backends.problem import Problem

    result: dict[str, Any] = {"backend": backend.name, "sm": target.sm, "op": op}
    if reasons := backend.reasons(Problem(op, target)):
        return result | {"refused": "; ".join(reasons)}
    failed = {}
    for form in forms:
        try:
            with placed(target):
                got, expected = form.run(backend.name), form.run("reference")
            for mine, theirs in zip(got, expected, strict=True):
                same_bits(one_nan(mine).cpu(), one_nan(theirs).cpu())
        except Exception as error:
            failed[form.name] = f"{type(error).__name__}: {str(error).splitlines()[0]}"
    return result | {"forms": len(forms), "failed": failed}


def record_gpu(every: bool) -> None:
    """Run the forms on this machine's GPU, and write what passed to <GPU>_runs.json."""
    import torch
    from kernel_forms import FORMS, SMALL, forms_on

    from nvfp4.backends import triton
    from nvfp4.backends.target import target_of

    target = target_of(torch.device("cuda"))
    chosen = [f for f in forms_on(target.sm) if every or f.name in SMALL]
    rows = [
        run_op(triton.BACKEND, op, target, [f for f in chosen if f.op == op])
        for op in sorted({f.op for f in FORMS})
    ]
    name = torch.cuda.get_device_name()
    machine = {
        "gpu": name,
        "python": platform.python_version(),
        "torch": version("torch"),
        "triton": version("triton"),
        "commit": tested_commit(),
        "command": " ".join(["python tests/support/matrix.py", *sys.argv[1:]]),
    }
    path = RESULTS / f"{name.removeprefix('NVIDIA ').lower()}_runs.json"
    path.write_text(json.dumps({"machine": machine, "rows": rows}, indent=1) + "\n")
    for row in rows:
        print(row, flush=True)


def tested_commit() -> str:
    """Name the commit, and whether anything but the record differs from it."""

    def git(*arguments: str) -> str:
        return subprocess.run(
            ["git", *arguments], cwd=ROOT, capture_output=True, text=True
        ).stdout.strip()

    changed = git(
        "status", "--porcelain", "--untracked-files=no", ".", f":!{RECORD.relative_to(ROOT)}"
    )
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
    parser.add_argument("--gpu", action="store_true")
    parser.add_argument("--child", type=int)
    options = parser.parse_args()
    if options.gpu:
        record_gpu(options.all)
        return
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
