"""Tiles measured on a machine: kept in a file, used where the environment names it."""

import json

import pytest
import torch
from typer.testing import CliRunner

import nvfp4
from nvfp4.backends.environment import BATCH_INVARIANT
from nvfp4.backends.triton.gemm.config import HopperConfig, MmConfig, choose_config
from nvfp4.backends.triton.gemm.tuned import TUNED, Pick, as_text, tuned_config
from nvfp4.backends.triton.linear import plan
from nvfp4.calls import Linear
from nvfp4.cli import app

CPU = torch.device("cpu")
SMALL, LARGE = MmConfig(32, 64, 128, 4, 2), MmConfig(64, 32, 128, 4, 2)
SPLIT = MmConfig(16, 64, 128, 4, 2, splits=2)
N, K = 96, 256


@pytest.fixture
def tuned(tmp_path, monkeypatch, device):
    """A file of picks for this machine."""
    path = tmp_path / "tuned.json"
    picks = {(N, K): [Pick(8, SPLIT, SMALL), Pick(128, LARGE, LARGE)]}
    path.write_text(as_text(picks, torch.device(device)))
    monkeypatch.setenv(TUNED, str(path))
    return path


def _config(m: int, n: int = N, k: int = K, may_split: bool = True):
    return tuned_config(m, n, k, CPU, may_split)


def test_without_a_file_nothing_is_tuned(monkeypatch):
    monkeypatch.delenv(TUNED, raising=False)
    assert _config(8) is None


@pytest.mark.skipif(torch.cuda.is_available(), reason="asks for picks for a CPU")
def test_picks_are_for_as_many_tokens_as_they_say(tuned):
    assert [_config(m) for m in (1, 8, 9, 128, 129)] == [SPLIT, SPLIT, LARGE, LARGE, None]
    assert _config(8, may_split=False) == SMALL
    assert _config(8, n=N + 16) is None


def test_both_kinds_of_tiles_come_back_as_they_were(tmp_path, monkeypatch):
    hopper = HopperConfig(64, 4, 8, stream_k=True)
    path = tmp_path / "tuned.json"
    path.write_text(as_text({(N, K): [Pick(8, hopper, SMALL)]}, CPU))
    monkeypatch.setenv(TUNED, str(path))
    assert (_config(8), _config(8, may_split=False)) == (hopper, SMALL)


def _tile(m: int) -> tuple[int, int, int]:
    x = torch.empty(m, K, dtype=torch.bfloat16, device="meta")
    scales = torch.empty(128, K // 16, dtype=torch.float8_e4m3fn)
    call = Linear(x, torch.empty(N, K // 2, dtype=torch.uint8), scales, torch.empty(1))
    out = torch.empty(m, N, dtype=torch.bfloat16)
    constants = plan(call, out, 0)[-1].constants
    return constants["BM"], constants["BN"], constants["SPLITS"]


@pytest.mark.skipif(torch.cuda.is_available(), reason="asks for picks for a CPU")
def test_a_gemm_runs_by_its_pick(tuned, monkeypatch):
    assert _tile(4) == (SPLIT.BM, SPLIT.BN, SPLIT.splits)
    assert _tile(100) == (LARGE.BM, LARGE.BN, 1)
    untuned = choose_config(4096, N, K, 0)
    assert _tile(4096) == (untuned.BM, untuned.BN, 1)
    monkeypatch.setenv(BATCH_INVARIANT, "1")
    assert _tile(4) == (SMALL.BM, SMALL.BN, 1)


def test_a_tuned_result_is_right(tuned, device, interpreted):
    w = nvfp4.quantize(torch.randn(N, K), backend="reference").to(device)
    x = torch.randn(4, K, dtype=torch.bfloat16, device=device)
    args = x, w.data, w.scales, w.global_scale
    got, want = (nvfp4.linear(*args, backend=b).double() for b in ("triton", "reference"))
    assert (got - want).norm() <= 2**-8 * want.norm()


def test_what_was_measured_elsewhere_is_not_used(tuned):
    found = json.loads(tuned.read_text())
    found["machine"]["gpu"] = "NVIDIA B200"
    other = tuned.with_name("other.json")
    other.write_text(json.dumps(found))
    with pytest.MonkeyPatch.context() as patch, pytest.warns(UserWarning, match="NVIDIA B200"):
        patch.setenv(TUNED, str(other))
        assert _config(8) is None


@pytest.mark.parametrize("text", ["", "[]", "{}", '{"machine": {}, "picks": [{"m": 1}]}', None])
def test_a_file_that_is_none_is_named(tmp_path, monkeypatch, text):
    path = tmp_path / f"{len(text or '?')}.json"
    if text is not None:
        path.write_text(text)
    monkeypatch.setenv(TUNED, str(path))
    with pytest.raises(ValueError, match=rf"{TUNED} needs a file .*{path.name}"):
        _config(8)


def test_a_file_of_an_earlier_version_is_refused(tmp_path, monkeypatch):
    """Its tiles have other fields: MmConfig's maxnreg was most_registers."""
    path = tmp_path / "earlier.json"
    text = as_text({(N, K): [Pick(8, SMALL, SMALL)]}, CPU)
    path.write_text(text.replace("maxnreg", "most_registers"))
    monkeypatch.setenv(TUNED, str(path))
    with pytest.raises(ValueError, match="this version's `python -m nvfp4 tune`.*most_registers"):
        _config(8)


def test_the_command_writes_picks_that_are_used(tmp_path, monkeypatch, device, interpreted):
    path = tmp_path / "tuned.json"
    few = {8: ((8, 64, 256, 4, 3), (16, 32, 256, 2, 4))}  # all of them take a minute and a half
    monkeypatch.setattr("nvfp4.tuning.linear._TILES", few)
    args = ["tune", "--shape", f"{N}x128", "--tokens", "3", "--out", str(path)]
    result = CliRunner().invoke(app, args)
    assert result.exit_code == 0, result.output
    assert f"{TUNED}={path}" in result.stdout
    monkeypatch.setenv(TUNED, str(path))
    assert tuned_config(3, N, 128, torch.device(device), True) is not None
    assert [p.name for p in tmp_path.iterdir()] == ["tuned.json"]


def test_a_shape_that_no_weight_has_is_one_line(tmp_path):
    args = ["tune", "--shape", "96x100", "--out", str(tmp_path / "tuned.json")]
    result = CliRunner().invoke(app, args)
    assert result.exit_code == 2 and "--shape needs NxK" in result.stderr
    assert not list(tmp_path.iterdir())
