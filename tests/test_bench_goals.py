"""The tables of measurements that are shown say what was measured."""

import json
import re
from pathlib import Path

import pytest

from nvfp4.bench.goals import GOALS, table

ROOT = Path(__file__).parent.parent
RESULTS = ROOT / "bench" / "results"
LINEAR = "h200_linear"


def _table() -> str:
    return table(json.loads((RESULTS / f"{LINEAR}.json").read_text()))


def _rows(text: str) -> list[list[str]]:
    return [[c.strip() for c in line.strip("|").split("|")] for line in text.splitlines()]


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
    assert text.count(mark) == 2 * len(GOALS)


def test_a_peer_that_did_not_run_is_no_goal_reached():
    rows = [{"op": "linear", "shape": "1x64x64", "ratios": {"bf16": 2.0, "weight-only": 1.0}}]
    machine = dict.fromkeys(("gpu", "torch", "triton", "commit"), "none")
    text = table({"rows": rows, "machine": machine})
    assert _rows(text)[2] == ["1", "not run", "1.25", "🟢 2.00", "1.75", "not run", "2.00"]
