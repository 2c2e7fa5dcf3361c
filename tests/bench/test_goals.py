"""The tables of measurements that are shown say what was measured."""

import json
import re

import pytest
from paths import ROOT

from nvfp4.bench.goals import GOALS, table

RESULTS = ROOT / "bench" / "results"
LINEAR = "h200_linear"


def _table() -> str:
    return table(json.loads((RESULTS / f"{LINEAR}.json").read_text()))


def _rows(text: str) -> list[list[str]]:
    return [[c.strip() for c in line.strip("|").split("|")] for line in text.splitlines()]


def _table_of(text: str) -> str:
    return text[: text.index("\n\n")]


def test_the_table_of_goals_is_of_the_results():
    assert (RESULTS / f"{LINEAR}_goals.md").read_text() == _table()


@pytest.mark.parametrize("shown, column", [("vs humming", 1), ("vs bf16", 3)])
def test_the_readme_shows_the_same_numbers(shown, column):
    rows = [row for row in _rows(_table()) if row[0].isdigit()]
    line = re.search(rf"^\| {re.escape(shown)} \|(.*)\|$", (ROOT / "README.md").read_text(), re.M)
    assert line is not None
    assert _rows(line[1])[0] == [row[column].split()[-1] for row in rows]


@pytest.mark.parametrize("factor, mark", [(1.01, "🟢"), (0.99, "🔴")])
def test_what_is_not_reached_is_red(factor, mark):
    def row(tokens: int) -> dict:
        ratios = {peer: goal * factor for peer, goal in GOALS[tokens].items()}
        return {"op": "linear", "shape": f"{tokens}x64x64", "ratios": ratios | {"weight-only": 1.0}}

    machine = dict.fromkeys(("gpu", "torch", "triton", "commit"), "none")
    text = table({"rows": [row(tokens) for tokens in GOALS], "machine": machine})
    assert _table_of(text).count(mark) == 2 * len(GOALS)


@pytest.mark.parametrize(
    "humming, weight_only, marks", [(0.96, 0.95, "🟢🟢"), (0.94, 0.96, "🔴🔴")]
)
def test_the_slowest_cells_are_judged(humming, weight_only, marks):
    ratios = {"bf16": 2.0, "humming": 2.0, "weight-only": 1.0}
    slow = {"bf16": 2.0, "humming": humming, "weight-only": weight_only}
    rows = [{"op": "linear", "shape": "8x64x64", "ratios": r} for r in (ratios, slow)]
    machine = dict.fromkeys(("gpu", "torch", "triton", "commit"), "none")
    text = table({"rows": rows, "machine": machine})
    assert "".join(re.findall("[🟢🔴]", text.removeprefix(_table_of(text)))) == marks


@pytest.mark.parametrize("microseconds, cell", [(20.0, "🟢 3.30"), (30.0, "🔴 2.20")])
def test_the_rate_of_weights_is_judged(microseconds, cell):
    rows = [
        {"shape": f"{m}x16384x7168", "ratios": {"weight-only": 1.0}, "microseconds": microseconds}
        for m in (1, 16)
    ]
    machine = dict.fromkeys(("gpu", "torch", "triton", "commit"), "none")
    text = table({"rows": rows, "machine": machine})
    assert text.count(f"M = 1: {cell} TB/s") == text.count("TB/s") == 1


def test_a_peer_that_did_not_run_is_no_goal_reached():
    rows = [{"op": "linear", "shape": "1x64x64", "ratios": {"bf16": 2.0, "weight-only": 1.0}}]
    machine = dict.fromkeys(("gpu", "torch", "triton", "commit"), "none")
    text = table({"rows": rows, "machine": machine})
    assert _rows(text)[2] == ["1", "not run", "1.25", "🟢 2.00", "1.75", "not run", "2.00"]
