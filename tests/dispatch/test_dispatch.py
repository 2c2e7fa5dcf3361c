"""Who runs what, and why."""

import shutil
from importlib.util import find_spec

import pytest
import torch

import nvfp4
from nvfp4.backends import cutedsl, emulation, environment, triton
from nvfp4.backends.problem import Problem
from nvfp4.backends.target import Target
from nvfp4.backends.triton.runtime import architecture
from nvfp4.dispatch import BACKENDS, choose
from nvfp4.dispatch.explain import STAGES
from nvfp4.emulator import c_library

CPU, HOPPER, BLACKWELL, TURING = (
    Target("cpu"),
    Target("cuda", 90),
    Target("cuda", 100),
    Target("cuda", 75),
)


HAS_DSL = all(find_spec(module) for module in cutedsl.PACKAGES)
needs_dsl = pytest.mark.skipif(not HAS_DSL, reason="needs the package nvidia-cutlass-dsl")


def _choose(op: str, target: Target, name: str = "") -> str:
    return choose(Problem(op, target), name).name


@pytest.fixture
def compiled_triton(monkeypatch: pytest.MonkeyPatch) -> None:
    """Triton as on a machine with a GPU: not interpreted."""
    monkeypatch.setenv("TRITON_INTERPRET", "0")


@pytest.mark.parametrize("op", [stage for stages in STAGES.values() for stage in stages])
def test_defaults(op, compiled_triton):
    assert _choose(op, CPU) == "reference"
    assert _choose(op, HOPPER) == "triton"
    assert _choose(op, Target("cuda", 120)) == "triton"
    assert _choose(op, TURING) == "reference"
    on_blackwell = "cutedsl" if op in cutedsl.BACKEND.ops and HAS_DSL else "triton"
    assert _choose(op, BLACKWELL) == on_blackwell


def test_interpreted_triton_runs_by_name_only(monkeypatch):
    monkeypatch.setenv("TRITON_INTERPRET", "1")
    assert _choose("mm", CPU) == "reference"
    if reasons := triton.BACKEND.reasons(Problem("mm", CPU)):
        pytest.skip("; ".join(reasons))
    assert _choose("mm", CPU, "triton") == "triton"


def test_all_reasons_of_all_backends_are_told(compiled_triton):
    with pytest.raises(ValueError) as error:
        choose(Problem("quantize", CPU), "cutedsl")
    message = str(error.value)
    assert "backend 'cutedsl' cannot run this on cpu" in message
    assert "needs a kernel for this op, has mm" in message
    assert "triton: needs an NVIDIA GPU of sm_80 or later" in message
    assert "reference: ok" in message


def test_cutedsl_reasons():
    needs = "needs sm_100 or sm_103, or the CPU to emulate it, got cuda sm_90"
    assert needs in cutedsl.BACKEND.reasons(Problem("mm", HOPPER))
    assert "needs sm_100" not in " ".join(cutedsl.BACKEND.reasons(Problem("mm", BLACKWELL)))
    assert "needs sm_100" not in " ".join(cutedsl.BACKEND.reasons(Problem("mm", CPU)))


@needs_dsl
def test_sm_100_is_emulated_by_name_only():
    assert _choose("mm", CPU) != "cutedsl"
    assert _choose("mm", CPU, "cutedsl") == "cutedsl"
    assert "emulated" in str(nvfp4.explain("mm", "cpu"))


def test_emulation_needs_a_c_compiler(monkeypatch):
    monkeypatch.setattr(c_library, "which", lambda name: None)
    reasons = cutedsl.BACKEND.reasons(Problem("mm", CPU))
    assert "needs a C compiler to emulate sm_100, got none" in reasons
    assert not any("C compiler" in r for r in cutedsl.BACKEND.reasons(Problem("mm", BLACKWELL)))


@pytest.mark.parametrize("named", ["", "no-such-compiler"])
def test_a_c_compiler_that_is_not_there_was_taken_for_one(monkeypatch, named):
    """$CC wins over the compilers that are there, so it has to be there itself."""
    monkeypatch.setenv("CC", named)
    reasons = cutedsl.BACKEND.reasons(Problem("mm", CPU))
    missing = "needs a C compiler to emulate sm_100, got none" in reasons
    assert missing == (bool(named) or not any(map(shutil.which, c_library.COMPILERS)))


def test_emulation_without_numpy_raised_an_import_error(monkeypatch):
    monkeypatch.setattr(emulation, "find_spec", lambda name: None)
    reasons = cutedsl.BACKEND.reasons(Problem("mm", CPU))
    assert "needs the package numpy to emulate sm_100, got none" in reasons


def test_a_missing_package_is_a_reason(monkeypatch, compiled_triton):
    monkeypatch.setattr(cutedsl, "find_spec", lambda name: None)
    assert "needs the package nvidia-cutlass-dsl, got none" in cutedsl.BACKEND.reasons(
        Problem("mm", BLACKWELL)
    )
    monkeypatch.setattr(architecture, "version", {"triton": "3.5.1", "numpy": "2.4.6"}.get)
    assert triton.BACKEND.reasons(Problem("mm", HOPPER)) == ["needs triton >= 3.6, got 3.5.1"]


def test_an_interpreter_that_its_numpy_breaks_is_a_reason(monkeypatch):
    monkeypatch.setenv("TRITON_INTERPRET", "1")
    installed = {"triton": "3.6.0", "numpy": "2.4.6"}
    monkeypatch.setattr(architecture, "version", installed.get)
    reasons = triton.BACKEND.reasons(Problem("mm", CPU))
    assert reasons == ["needs numpy < 2.4 to interpret with triton 3.6, got 2.4.6"]
    installed["numpy"] = "2.3.5"
    assert triton.BACKEND.reasons(Problem("mm", CPU)) == []


def test_environment_names_a_backend(monkeypatch, device):
    x = torch.randn(2, 32, device=device)
    monkeypatch.setenv(environment.BACKEND, "cutedsl")
    with pytest.raises(ValueError, match="backend 'cutedsl' cannot run this"):
        torch.ops.nvfp4.quantize_dynamic(x, backend="cutedsl")
    torch.ops.nvfp4.quantize_dynamic(x)  # it has no quantizer: who runs it best does
    torch.ops.nvfp4.quantize_dynamic(x, backend="reference")
    monkeypatch.setenv(environment.BACKEND, "reference")
    assert nvfp4.explain("mm", device).backend == "reference"


def test_explain(device):
    explanation = nvfp4.explain("linear", torch.empty(0, device=device))
    assert [stage.op for stage in explanation.stages] == ["quantize_dynamic", "mm"]
    for name in (b.name for b in BACKENDS):
        assert f"{name}: " in str(explanation)
    assert nvfp4.explain("quantize", "cpu", backend="cutedsl").backend == "none"
    emulated = "cutedsl" if HAS_DSL else "none"
    assert nvfp4.explain("linear", "cpu", backend="cutedsl").backend.endswith(f" + {emulated}")
    with pytest.raises(ValueError, match="op needs one of"):
        nvfp4.explain("conv2d")


def test_every_launcher_that_a_backend_names_is_there():
    for backend in BACKENDS:
        for op in backend.ops:
            assert callable(backend.launcher(op))


def test_every_op_is_explained():
    registered = {
        name.removeprefix("nvfp4::").split(".")[0]
        for name in torch._C._dispatch_get_all_op_names()
        if name.startswith("nvfp4::")
    }
    modes = {"weight_only_linear", "weight_only_moe"}
    assert registered == set(STAGES) - modes, "linear's and moe's other form"
