"""A call like an earlier one launches what that one did, on its own tensors; one that may not, or
cannot, is run.
"""

from collections.abc import Callable
from types import SimpleNamespace
from typing import Any, NamedTuple

import pytest
import torch
from arguments import NAMES, arguments
from cases import same_bits
from torch import Tensor

from nvfp4.backends import environment
from nvfp4.backends.recording import RECORDING, recorded, write_down
from nvfp4.backends.triton.runtime.launch import Launch
from nvfp4.calls import checks
from nvfp4.dispatch import replay

OPS = torch.ops.nvfp4


class Doubling(NamedTuple):
    """A launch, as it is written down; launched again, it keeps the addresses."""

    tensors: tuple[Tensor, ...]
    replays: list[list[int]]

    def bound(self) -> tuple[Callable[..., None], tuple[Tensor, ...]]:
        return lambda *addresses: self.replays.append(list(addresses)), self.tensors


class Op:
    """An op that doubles a matrix, by a launch, and what became of its calls."""

    def __init__(self) -> None:
        self.runs = 0
        self.replays: list[list[int]] = []
        self.backend = "fake"
        self.before: Callable[[Tensor], Any] = lambda x: x
        self.call = replay.replayed(self._run)

    def _run(self, x: Tensor, scale: float = 2.0, *, pair: bool = False) -> Any:
        self.runs += 1
        self.before(x)
        out = x.new_empty(x.shape, dtype=torch.float64)
        outs = (out, x.new_empty(3)) if pair else (out,)
        recording = RECORDING.get()
        if recording is not None:
            recording.backends.add(self.backend)
        write_down(Doubling((x, *outs), self.replays))
        return outs if pair else out


@pytest.fixture
def op(monkeypatch) -> Op:
    made = Op()
    backends = [
        SimpleNamespace(name="fake", replays=True),
        SimpleNamespace(name="other", replays=True),
        SimpleNamespace(name="mute", replays=False),
    ]
    monkeypatch.setattr(replay, "BACKENDS", backends)
    _pretend(monkeypatch)
    return made


def _pretend(monkeypatch) -> None:
    """That this machine's tensors are a GPU's."""
    monkeypatch.setattr(replay, "_launches_alone", lambda x: True)
    monkeypatch.setattr(torch.cuda, "current_device", lambda: None)


def test_the_second_call_is_replayed_on_its_own_tensors(op):
    op.call(torch.zeros(4, 8))
    x = torch.zeros(4, 8)
    out = op.call(x)
    assert op.runs == 1
    assert op.replays == [[x.data_ptr(), out.data_ptr()]]
    assert out.shape == (4, 8) and out.dtype == torch.float64
    assert out.data_ptr() != op.call(x).data_ptr()


def test_what_is_returned_is_so_again(op):
    for _ in range(2):
        out, other = op.call(torch.zeros(4, 8), pair=True)
        assert out.shape == (4, 8) and other.shape == (3,) and other.dtype == torch.float32
    assert op.runs == 1 and len(op.replays[0]) == 3


def test_another_form_is_run(op, monkeypatch):
    x = torch.zeros(4, 8)
    buffer = torch.zeros(64)
    calls = [
        lambda: op.call(x),
        lambda: op.call(torch.zeros(4, 9)),
        lambda: op.call(torch.zeros(8, 4).T),
        lambda: op.call(x.double()),
        lambda: op.call(buffer[1:33].view(4, 8)),
        lambda: op.call(x, 3.0),
        lambda: op.call(x, pair=True),
    ]
    for count, call in enumerate(calls, 1):
        call()
        call()
        assert op.runs == count and len(op.replays) == count
    for name in (environment.BATCH_INVARIANT, environment.TUNED, environment.BACKEND):
        monkeypatch.setenv(name, "1")
        op.call(x)
    assert op.runs == len(calls) + 3


WORK = [
    lambda x: x.clone(),
    lambda x: x + 1,
    lambda x: x.T.contiguous(),
    lambda x: x.zero_(),
    lambda x: x.sum().item(),
    lambda x: OPS.quantize_dynamic(x.new_ones(1, 16)),
]


@pytest.mark.parametrize("work", WORK)
def test_what_works_otherwise_is_run_each_time(op, work):
    op.before = work
    for count in (1, 2, 3):
        op.call(torch.zeros(4, 8))
        assert op.runs == count and not op.replays


VIEWS = [
    lambda x: x.reshape(-1),
    lambda x: x.T.view(torch.int32)[1:].unsqueeze(0).chunk(2),
    lambda x: torch.empty(5).contiguous(),
]


@pytest.mark.parametrize("view", VIEWS)
def test_views_and_allocations_do_no_harm(op, view):
    op.before = view
    op.call(torch.zeros(4, 8))
    op.call(torch.zeros(4, 8))
    assert op.runs == 1


@pytest.mark.parametrize("zeros", [lambda x: x.new_zeros(4), lambda x: x.new_empty(4).zero_()])
def test_what_is_zeroed_is_so_again(op, zeros):
    def run(x: Tensor) -> tuple[Tensor, Tensor]:
        out = zeros(x)
        return out, op._run(x)

    call = replay.replayed(run)
    for _ in range(3):
        out, _ = call(torch.zeros(4, 8))
        assert op.runs == 1 and not out.any()
        out.fill_(1)


@pytest.mark.parametrize(
    "zero", [lambda out: out[1:].zero_(), lambda out: out.zero_(), lambda out: out.new_zeros(2)]
)
def test_what_is_zeroed_in_part_or_late_or_on_the_way_is_run(op, zero):
    def run(x: Tensor) -> Tensor:
        out = op._run(x)
        zero(out)
        return out

    call = replay.replayed(run)
    call(torch.zeros(4, 8))
    call(torch.zeros(4, 8))
    assert op.runs == 2


@pytest.mark.parametrize("name", ["mute", "unknown"])
def test_a_backend_that_cannot_replay_is_run(op, name):
    op.backend = name
    op.call(torch.zeros(4, 8))
    op.call(torch.zeros(4, 8))
    assert op.runs == 2


class Also:
    """What another backend launches before: it fills a tensor that the call makes."""

    def __init__(self, backend: str) -> None:
        self.backend = backend
        self.replays: list[list[int]] = []

    def __call__(self, x: Tensor) -> None:
        recording = RECORDING.get()
        if recording is not None:
            recording.backends.add(self.backend)
        write_down(Doubling((x, x.new_empty(5)), self.replays))


def test_an_op_of_two_backends_was_never_replayed(op):
    """On sm_100, a linear layer quantizes by one backend and multiplies by another."""
    op.before = other = Also("other")
    op.call(torch.zeros(4, 8))
    x = torch.zeros(4, 8)
    out = op.call(x)
    assert op.runs == 1 and op.replays == [[x.data_ptr(), out.data_ptr()]]
    ((first, made),) = other.replays
    assert first == x.data_ptr() and made not in (first, out.data_ptr())


def test_one_of_two_backends_cannot_replay(op):
    op.before = Also("mute")
    op.call(torch.zeros(4, 8))
    op.call(torch.zeros(4, 8))
    assert op.runs == 2 and not op.replays


def test_an_error_is_not_remembered(op):
    def fail(x: Tensor) -> None:
        raise ValueError("no")

    before, op.before = op.before, fail
    for _ in range(2):
        with pytest.raises(ValueError, match="no"):
            op.call(torch.zeros(4, 8))
    op.before = before
    op.call(torch.zeros(4, 8))
    op.call(torch.zeros(4, 8))
    assert op.runs == 3 and RECORDING.get() is None


def test_what_is_written_down_is_run(op):
    op.call(torch.zeros(4, 8))
    for runs in (2, 3):
        with recorded() as recording:
            op.call(torch.zeros(4, 8))
        assert len(recording.launches) == 1 and op.runs == runs
    assert not op.replays


def test_a_tensor_given_twice_is_run(op):
    x = torch.zeros(4, 8)
    call = replay.replayed(lambda a, b: op._run(a))
    for count in (1, 2):
        call(x, x)
        assert op.runs == count


def test_no_more_forms_are_kept_than_said(op, monkeypatch):
    monkeypatch.setattr(replay, "MOST", 2)
    for rows in (1, 2, 3, 1):
        op.call(torch.zeros(rows, 8))
    assert op.runs == 4


# ---- the ops themselves -----------------------------------------------------------------------


@pytest.mark.parametrize("name", NAMES)
def test_every_op_does_nothing_that_cannot_be_replayed(name, device, monkeypatch):
    if device == "cuda":
        pytest.skip("kernels are launched there: the next test")
    args = arguments(name, 7, device)
    found = []
    record = replay._record

    def spied(*given: Any) -> Any:
        found.append(record(*given))
        return found[-1]

    _pretend(monkeypatch)
    monkeypatch.setattr(replay, "_record", spied)
    monkeypatch.setattr(checks, "_readable", lambda x: False)  # as a GPU's are not
    monkeypatch.setattr(Launch, "run", lambda launch: None)
    monkeypatch.setattr(Launch, "loaded", lambda launch: (lambda *a: None, launch.args))
    monkeypatch.setenv("NVFP4_BACKEND", "triton")
    getattr(OPS, name)(*args)
    ((outputs, call),) = found
    assert call is not None
    assert len(call.outputs) == (len(outputs) if isinstance(outputs, tuple) else 1)


@pytest.mark.gpu
@pytest.mark.parametrize("m", [1, 7, 300])
@pytest.mark.parametrize("name", NAMES)
def test_a_replayed_call_gives_the_same_bits(name, m, device, monkeypatch):
    replays = []
    run = replay.Call.run

    def spied(call: replay.Call, *given: Any) -> Any:
        replays.append(call)
        return run(call, *given)

    getattr(OPS, name)(*arguments(name, m, device))
    args = arguments(name, m, device)
    monkeypatch.setattr(replay.Call, "run", spied)
    got = getattr(OPS, name)(*args)
    assert len(replays) == 1
    monkeypatch.setattr(replay, "_launches_alone", lambda x: False)
    want = getattr(OPS, name)(*args)
    got, want = (x if isinstance(x, tuple) else (x,) for x in (got, want))
    for g, w in zip(got, want, strict=True):
        same_bits(g, w)
