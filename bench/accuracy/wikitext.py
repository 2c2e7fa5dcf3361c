"""python -m nvfp4.bench.accuracy.wikitext RAW OUT: a split of WikiText-2 as plain text.

WikiText writes spaces around punctuation, and "@-@" for a hyphen within a word. This undoes both,
so that a model reads what a person would write. It keeps the beginning of the split.
"""

import re
from pathlib import Path
from typing import Annotated

import typer

CHARACTERS = 400_000
"""The most characters that are kept: about 90,000 tokens."""

SPELLINGS = ((" @-@ ", "-"), (" @,@ ", ","), (" @.@ ", "."), ("<unk>", "unknown"))
SPACES = (
    (r" ([.,;:!?%)\]'])", r"\1"),
    (r"([(\[]) ", r"\1"),
    (r'" ([^"]*) "', r'"\1"'),
    (r"\n( *\n)+", "\n\n"),
)


def plain(text: str) -> str:
    for written, meant in SPELLINGS:
        text = text.replace(written, meant)
    for pattern, replacement in SPACES:
        text = re.sub(pattern, replacement, text)
    return text[:CHARACTERS]


def main(
    raw: Annotated[Path, typer.Argument(help="A split, such as test.txt of WikiText-2.")],
    out: Annotated[Path, typer.Argument(help="The file to write.")],
) -> None:
    """Write the beginning of a split of WikiText-2 as plain text."""
    out.write_text(plain(raw.read_text()))


if __name__ == "__main__":
    typer.run(main)
