"""The README's examples run as they stand."""

import re
from pathlib import Path

ROOT = Path(__file__).parent.parent


def test_examples(capsys):
    dense, experts = re.findall(r"```python\n(.*?)```", (ROOT / "README.md").read_text(), re.S)
    names: dict = {}
    exec(dense, names)
    assert names["h"].shape == (8, 3072)
    exec(experts, names)
    assert names["y"].shape == (4, 512)
    assert "nvfp4::linear on cpu: reference" in capsys.readouterr().out


def test_links_lead_somewhere():
    for page in ("README.md", "CONTRIBUTING.md"):
        for target in re.findall(r"\]\(([^)#]+)\)", (ROOT / page).read_text()):
            assert (ROOT / target).exists(), f"{page}: {target}"
