"""The benchmark of a call's host time times what it says: planned calls, and replayed ones."""

import pytest

from nvfp4.backends.cutedsl import mm
from nvfp4.bench import host_time


@pytest.mark.usefixtures("emulated")
@pytest.mark.parametrize("replayed, plans", [(False, 4), (True, 1)])
def test_a_replayed_call_is_planned_once(replayed, plans, monkeypatch):
    planned = []
    plan = mm.plan

    def spied(*args):
        planned.append(args)
        return plan(*args)

    monkeypatch.setattr(mm, "plan", spied)
    monkeypatch.setattr(host_time, "CALLS", 3)
    monkeypatch.setattr(host_time, "ROUNDS", 1)
    monkeypatch.setenv("NVFP4_TUNED", f"a form of its own: {replayed}")  # part of a form's key
    call = next(iter(host_time.calls().values()))
    with host_time.fake_launches(replayed):
        assert host_time.microseconds(call) > 0
    assert len(planned) == plans
