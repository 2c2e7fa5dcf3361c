"""Replayed calls on sm_100: nothing but launches, which the emulator runs on the new tensors."""

import ctypes
from collections.abc import Callable, Iterator
from typing import Any

import pytest
import torch
from arguments import NAMES, arguments
from cases import same_bits
from torch import Tensor

import nvfp4
from nvfp4.backends import triton
from nvfp4.backends.cutedsl.gemm.launch import Launch
from nvfp4.backends.cutedsl.runtime import emulated
from nvfp4.backends.extents import extent
from nvfp4.backends.target import Target
from nvfp4.backends.triton.runtime.launch import Launch as TritonLaunch
from nvfp4.calls import checks
from nvfp4.dispatch import replay, select

OPS = torch.ops.nvfp4
MULTIPLIES = ("mm", "grouped_mm", "grouped_mm_glu_quantize", "linear", "swiglu_mlp", "moe")


@pytest.fixture
def recorded(monkeypatch) -> list[replay.Call | None]:
    """What is remembered of calls."""
    found: list[replay.Call | None] = []
    record = replay._record

    def spied(*given: Any) -> Any:
        outputs, call = record(*given)
        found.append(call)
        return outputs, call

    monkeypatch.setattr(replay, "_record", spied)
    monkeypatch.setattr(checks, "_readable", lambda x: False)  # as a GPU's are not
    return found


def _pretend(monkeypatch) -> None:
    """Take this machine's tensors for a GPU's from now on."""
    monkeypatch.setattr(replay, "_launches_alone", lambda x: True)
    monkeypatch.setattr(torch.cuda, "current_device", lambda: None)


@pytest.fixture
def forget() -> Iterator[None]:
    """Choose no backend that was chosen before the test or within it."""
    chosen = select._launcher, select._fused_launcher
    for cached in chosen:
        cached.cache_clear()
    yield
    for cached in chosen:
        cached.cache_clear()


def _pretend_a_b200(monkeypatch) -> list[str]:
    """Pretend that tensors are a B200's; returns the kernels that are launched, without effect."""
    kernels: list[str] = []

    def run(launch: Any) -> None:
        kernels.append(launch.describe())

    _pretend(monkeypatch)
    monkeypatch.setattr(select, "target_of", lambda device: Target("cuda", 100))
    monkeypatch.setattr(triton, "interpreting", lambda: False)
    for kind in (Launch, TritonLaunch):
        monkeypatch.setattr(kind, "run", run)
    monkeypatch.setattr(TritonLaunch, "loaded", lambda launch: (lambda *a: None, launch.args))
    monkeypatch.setattr(Launch, "bound", lambda launch: (lambda *a: None, launch.operands))
    return kernels


@pytest.mark.usefixtures("emulated", "forget")
@pytest.mark.parametrize("name", NAMES)
def test_a_call_on_blackwell_was_never_replayed(name, device, recorded, monkeypatch):
    """The GEMMs are of one backend, and all else is of another."""
    if device == "cuda":
        pytest.skip("a GPU's tensors are not pretended")
    args = arguments(name, 7, device)
    launched = _pretend_a_b200(monkeypatch)
    getattr(OPS, name)(*args)
    (call,) = recorded
    assert call is not None and len(call.program.steps) == len(launched)
    assert any("alpha" in kernel for kernel in launched) == (name in MULTIPLIES)
    before = len(launched)
    getattr(OPS, name)(*[x.clone() if isinstance(x, Tensor) else x for x in args])
    assert len(recorded) == 1 and len(launched) == before


def _at(address: int, like: Tensor) -> Tensor:
    """A tensor of this form at an address that somebody keeps."""
    begin, end = extent(like)
    memory = (ctypes.c_uint8 * (end - begin)).from_address(address)
    data = torch.frombuffer(memory, dtype=torch.uint8).view(like.dtype)
    return data.as_strided(like.shape, like.stride())


def _emulated_at(launch: Launch) -> tuple[Callable[..., None], tuple[Any, ...]]:
    """Bind a launch of CPU tensors to the emulator, as `bound` binds one to a GPU."""
    count = len(launch.operands)
    index = {
        name: next(i for i, operand in enumerate(launch.operands) if operand is x)
        for name, x in launch.tensors.items()
    }

    def run(*arguments: Any) -> None:
        operands = [_at(a, x) for a, x in zip(arguments[:count], launch.operands, strict=True)]
        tensors = {name: operands[i] for name, i in index.items()}
        sizes = arguments[count:]
        emulated.run(launch._replace(operands=tuple(operands), sizes=sizes, tensors=tensors))

    return run, (*launch.operands, *launch.sizes)


def _mm(m: int) -> tuple[str, tuple[Any, ...]]:
    a, b = nvfp4.quantize_dynamic(torch.randn(m, 512)), nvfp4.quantize(torch.randn(136, 512))
    alpha = a.global_scale[:, None] * b.global_scale
    bias = torch.randn(136)
    return "mm", (a.data, b.data, a.scales, b.scales, alpha, None, bias, None)


def _grouped(name: str, m: int, *options: Any) -> tuple[str, tuple[Any, ...]]:
    w = nvfp4.quantize_experts(torch.randn(3, 256, 64))
    ids = torch.randint(0, 3, (m, 2))
    rows, _ = nvfp4.moe_dispatch(torch.randn(m, 64), ids, 3)
    operands = rows.data, w.data, rows.scales, w.scales, w.global_scale, rows.offsets
    return name, (*operands, rows.row_scale, *options)


FORMS = {
    "mm": lambda: _mm(7),
    "mm of many rows": lambda: _mm(130),
    "grouped_mm": lambda: _grouped("grouped_mm", 20),
    "fused": lambda: _grouped(
        "grouped_mm_glu_quantize",
        20,
        None,
        torch.rand(3) + 0.1,
        7.0,
        torch.bfloat16,
        0,
        "amax_over_six",
        "silu",
    ),
}


@pytest.mark.usefixtures("emulated")
@pytest.mark.parametrize("form", FORMS)
def test_a_replayed_call_gives_the_same_bits(form, device, recorded, monkeypatch):
    if device == "cuda":
        pytest.skip("the emulator runs CPU tensors")
    first, second = FORMS[form](), FORMS[form]()
    name, args = second
    want = getattr(OPS, name)(*args, backend="cutedsl")
    _pretend(monkeypatch)
    monkeypatch.setattr(Launch, "run", lambda launch: None)  # to the dispatch, the emulator works
    monkeypatch.setattr(Launch, "bound", _emulated_at)
    name, args = first
    getattr(OPS, name)(*args, backend="cutedsl")
    (call,) = recorded
    assert call is not None
    name, args = second
    got = getattr(OPS, name)(*args, backend="cutedsl")
    assert len(recorded) == 1, "the second call was replayed"
    got, want = (x if isinstance(x, tuple) else (x,) for x in (got, want))
    for one, other in zip(got, want, strict=True):
        same_bits(one, other)
