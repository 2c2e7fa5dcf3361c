"""The tables of measurements that are shown say what was measured."""

import json
import re
from pathlib import Path

import pytest

from nvfp4.bench.goals import GOALS, table

ROOT = Path(__file__).parent.parent
RESULTS = ROOT / "bench" / "results" / "h200_linear.json"


def _rows(text: str) -> list[list[str]]:
    return [[c.strip() for c in line.strip("|").split("|")] for line in text.splitlines()]


def test_the_table_of_goals_is_of_the_results():
    found = RESULTS.with_name("h200_linear_goals.md").read_text()
    assert found == table(json.loads(RESULTS.read_text()))


def test_the_readme_shows_the_same_numbers():
    rows = [row for row in _rows(table(json.loads(RESULTS.read_text()))) if row[0].isdigit()]
    readme = (ROOT / "README.md").read_text()
    for name, column in (
        ("vs bf16", 3), ("vs humming", 1), ('`activation="bf16"` vs humming', 5),
    ):  # fmt: skip
        shown = re.search(rf"^\| {re.escape(name)} \|(.*)\|$", readme, re.M)
        assert shown is not None
        assert _rows(shown[1])[0] == [row[column].split()[-1] for row in rows]


@pytest.mark.parametrize("factor, mark", [(1.01, "🟢"), (0.99, "🔴")])
def test_what_is_not_reached_is_red(factor, mark):
    def row(tokens: int) -> dict:
        ratios = {peer: goal * factor for peer, goal in GOALS[tokens].items()}
        return {"op": "linear", "shape": f"{tokens}x64x64", "ratios": ratios | {"weight-only": 1.0}}

    machine = dict.fromkeys(("gpu", "torch", "triton", "commit"), "none")
    text = table({"rows": [row(tokens) for tokens in GOALS], "machine": machine})
    assert text.count(mark) == 2 * len(GOALS)
