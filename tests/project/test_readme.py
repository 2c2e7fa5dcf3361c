"""What the front page alone has to be; what every page has to be is tested in test_docs.py."""

from pages import ROOT, blocks

README = (ROOT / "README.md").read_text()


def test_it_is_short():
    assert len(README.splitlines()) <= 110


def test_the_first_example_shows_both_modes(capsys):
    (example,) = (block.code for block in blocks(README) if block.language == "python")
    names: dict = {}
    exec(example, names)
    y, z, same, h = (names[name] for name in ("y", "z", "same", "h"))
    assert y.shape == z.shape == (8, 6144) and h.shape == (8, 3072)
    assert y.equal(same) and not y.equal(z)
    assert "nvfp4::linear on " in capsys.readouterr().out
