"""Triton's kernels compiled ahead, in processes of their own, for a GPU that is not here."""

import os
import queue
import subprocess
import sys
from types import SimpleNamespace

import pytest
import torch
from cases import skip_if_it_cannot
from paths import ROOT
from torch import Tensor

import nvfp4
from nvfp4.backends.backend import Compilation
from nvfp4.backends.target import Target, sm_of
from nvfp4.backends.triton import warmup
from nvfp4.backends.workload import Workload

DENSE = Workload(96, 256, 3)


@pytest.fixture
def command(tmp_path, compiles):
    """python -m nvfp4 warmup, with a cache of Triton's that is empty at first: in a process of its
    own, since in this one Triton interprets.
    """

    def run(*args: str) -> subprocess.CompletedProcess[str]:
        caches = {"TRITON_CACHE_DIR": str(tmp_path), "TRITON_INTERPRET": "0"}
        line = [sys.executable, "-m", "nvfp4", "warmup", *args]
        environment = {**os.environ, **caches, "PYTHONPATH": str(ROOT)}
        return subprocess.run(line, env=environment, capture_output=True, text=True)

    return run


def _made_of(launch):
    kinds = [a.dtype if isinstance(a, Tensor) else a is None for a in launch.args]
    return launch.kernel.fn, tuple(launch.constants.items()), launch.num_warps, tuple(kinds)


@pytest.mark.parametrize("sm", [80, 90, 120])
@pytest.mark.parametrize("experts, activation", [(0, "nvfp4"), (0, "bf16"), (4, "nvfp4")])
def test_every_number_of_tokens_finds_its_kernels(sm, experts, activation):
    work = Workload(7168, 2048, 700, experts=experts, activation_format=activation)
    ahead = {_made_of(launch) for _, launch in warmup.launches_for([work], sm)}
    plan = warmup._grouped if experts else warmup._linear
    for m in range(1, 701):
        for launch in plan(work, m, torch.bfloat16, sm):
            assert _made_of(launch) in ahead, m


@pytest.mark.parametrize("sm", [80, 90, 120])
def test_a_fused_layer_with_a_static_scale_was_warmed_up_as_another_one(sm, monkeypatch):
    """Kernels are specialized to one global scale of the weight, and to a static one of x."""
    parts = [torch.nn.Linear(64, n, bias=False) for n in (32, 32, 32)]
    layer = nvfp4.layers.Linear.fused(parts, input_global_scale=torch.tensor(0.1))
    asked = []
    monkeypatch.setattr("nvfp4.layers.linear.compile_ahead", lambda works, *_: asked.extend(works))
    layer.warmup(5)
    (work,) = asked
    assert (work.segments, work.calibrated) == (3, True)
    launches = warmup._linear(work, 5, torch.bfloat16, sm)
    multiply = next(launch for launch in launches if "mm" in launch.kernel.fn.__name__)
    names = multiply.kernel.arg_names
    assert multiply.args[names.index("alpha")].shape == (1, 3)
    rounds = next(launch for launch in warmup._linear(work, 5, torch.bfloat16, sm))
    assert not rounds.constants.get("DYNAMIC", False)


def test_one_kernel_of_several_shapes_was_compiled_for_each(monkeypatch, tmp_path):
    def compile_share(sm, workloads, share, done):
        for index in share:
            done.put((str(index), "compiled"))
        done.put(None)

    monkeypatch.setattr(warmup, "_run_share", compile_share)
    monkeypatch.setattr(warmup, "_mark", lambda launch, sm: tmp_path / launch)
    launches = [("of one shape", "a"), ("of another", "a"), ("of another", "b")]
    outcomes = list(warmup.compile_all(launches, [], 90, 2))
    assert sorted(outcomes) == [("0", "compiled"), ("2", "compiled"), ("of another", "cached")]


@pytest.mark.parametrize("sm", [80, 90, 100])
def test_w4a16_was_warmed_up_as_w4a4(sm):
    work = Workload(256, 512, 4, activation_format="bf16")
    names = {launch.kernel.fn.__name__ for _, launch in warmup.launches_for([work], sm)}
    assert names == {"_lay_out_rows_kernel", "_mm_kernel"}


def test_kernels_are_compiled_into_tritons_cache(command, tmp_path):
    shapes = "--shape", "96x256", "--moe", "4x64x96", "--max-m", "3"
    args = *shapes, "--arch", "sm_90a", "--workers"
    first = command(*args, "2")
    assert first.returncode == 0, first.stderr
    kernels = first.stdout.count(": compiled\n")
    assert kernels == len(list(tmp_path.rglob("*.cubin"))) == len(first.stdout.splitlines()) > 0
    assert command(*args, "1").stdout.count(": cached\n") == kernels


def test_a_kernel_that_cannot_be_compiled_is_told():
    done = queue.SimpleQueue()
    warmup._run_share(30, [DENSE], [0], done)
    ((name, outcome), end) = done.get(), done.get()
    assert name == "round_rows_kernel for 96x256" and outcome.startswith("failed: ") and end is None


def test_a_process_that_does_not_start_is_told(monkeypatch):
    monkeypatch.setattr(sys, "executable", "/bin/false")
    done = queue.SimpleQueue()
    warmup._run_share(90, [DENSE], [0, 1], done)
    ((name, outcome), end) = done.get(), done.get()
    assert name == "2 kernels" and outcome.startswith("failed: ") and end is None


SAME_KERNELS = """
import torch
from nvfp4.backends.workload import Workload
from nvfp4.backends.triton import warmup
from nvfp4.backends.triton.runtime.ahead import compile_launch

def hashes():
    launches = warmup.launches_for([Workload(96, 256, 3), Workload(96, 256, 3, experts=4)], 90)
    return [compile_launch(launch, 90).hash for _, launch in launches]

ahead = hashes()
warmup._launches_of.cache_clear()
warmup._meta = lambda *shape, dtype=torch.float32: torch.empty(shape, dtype=dtype)
assert ahead and hashes() == ahead
"""


def test_they_are_the_kernels_of_tensors_that_are_there(tmp_path, compiles):
    caches = {"TRITON_CACHE_DIR": str(tmp_path), "TRITON_INTERPRET": "0"}
    environment = {**os.environ, **caches, "PYTHONPATH": str(ROOT)}
    line = [sys.executable, "-c", SAME_KERNELS]
    done = subprocess.run(line, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-2000:]


SOURCES = """
import sys
from nvfp4.backends.workload import Workload
from nvfp4.backends.triton import warmup

launches = warmup.launches_for([Workload(96, 256, 300)], 90)
for _, launch in launches[int(sys.argv[1]):] + launches:
    warmup._mark(launch, 90)
print([launch.kernel.cache_key for _, launch in launches])
"""


def test_a_process_finds_what_another_has_compiled_whatever_it_ran_first(compiles):
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "TRITON_INTERPRET": "0"}
    runs = [
        subprocess.run(
            [sys.executable, "-c", SOURCES, first], env=environment, capture_output=True, text=True
        )
        for first in ("0", "2")
    ]
    assert runs[0].stdout and runs[0].stdout == runs[1].stdout, runs[1].stderr[-2000:]


@pytest.mark.parametrize(
    "arch, message", [("90", "got '90'"), ("sm_70", "that compiles mm ahead for cuda sm_70")]
)
def test_an_architecture_that_nobody_compiles_for(command, arch, message):
    refused = command("--shape", "96x256", "--arch", arch)
    assert refused.returncode == 2 and message in refused.stderr


def test_what_cannot_be_compiled_ahead_is_an_error_where_nothing_else_will_tell(monkeypatch):
    failed = Compilation(1, iter([("a kernel", "failed: why")] * 2))
    backend = SimpleNamespace(compile_ahead=lambda *args: failed)
    module = sys.modules["nvfp4.ahead.warmup"]
    monkeypatch.setattr(module, "choose", lambda *args, **kwargs: backend)
    monkeypatch.setattr(module, "target_of", lambda device: Target(device.type, 90))
    with pytest.raises(RuntimeError, match="a kernel: failed: why"):
        module.compile_ahead([DENSE], torch.device("cpu"))
    with pytest.warns(UserWarning, match="a kernel: failed: why"):
        module.compile_ahead([DENSE], torch.device("cuda"))


def test_an_interpreter_compiles_nothing(monkeypatch):
    monkeypatch.setenv("TRITON_INTERPRET", "1")
    skip_if_it_cannot("triton", "cpu")
    assert nvfp4.warmup([(96, 256)], 3, device="cpu", backend="triton") == []


def test_architectures():
    assert [sm_of(arch) for arch in ("sm_80", "sm_90a", "sm_120f")] == [80, 90, 120]
