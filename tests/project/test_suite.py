"""The tests themselves: where they lie, and how they are run."""

import re
import subprocess

import pytest
from paths import ROOT

TESTS = ROOT / "tests"


def test_every_test_lies_in_a_folder():
    assert not list(TESTS.glob("test_*.py"))


def test_plain_make_started_every_test():
    """It prints what there is: each target with a sentence."""
    told = subprocess.run(
        ["make", "--no-print-directory"], cwd=ROOT, capture_output=True, text=True, check=True
    ).stdout
    targets = re.search(r"^\.PHONY: (.*)$", (ROOT / "Makefile").read_text(), re.MULTILINE)[1]
    lines = dict(re.findall(r"^make (\S+) +([A-Z].*\.)$", told, re.MULTILINE))
    assert {*targets.split(), "triton-%"} - {"help"} == set(lines)
    assert len(told.splitlines()) == len(lines)


@pytest.mark.usefixtures("compiles")
def test_a_fixture_sets_its_marker(request):
    assert request.node.get_closest_marker("compiles")


@pytest.mark.op("mm")
def test_a_backend_sets_its_marker(backend, device, request):
    markers = {mark.name for mark in request.node.iter_markers()} - {"op", "parametrize"}
    on_cpu = {"cutedsl": {"emulated"}, "triton": {"interpreted"}, "reference": set()}
    assert markers == (on_cpu[backend] if device == "cpu" else set())
