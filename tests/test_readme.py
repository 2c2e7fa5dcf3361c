"""The README's example runs as it stands."""

import re
from pathlib import Path

ROOT = Path(__file__).parent.parent


def test_example(capsys):
    (example,) = re.findall(r"```python\n(.*?)```", (ROOT / "README.md").read_text(), re.S)
    names: dict = {}
    exec(example, names)
    assert names["h"].shape == (8, 3072)
    assert "nvfp4::linear on cpu: reference" in capsys.readouterr().out


def test_links_lead_somewhere():
    for page in ("README.md", "CONTRIBUTING.md"):
        for target in re.findall(r"\]\(([^)#]+)\)", (ROOT / page).read_text()):
            assert (ROOT / target).exists(), f"{page}: {target}"
