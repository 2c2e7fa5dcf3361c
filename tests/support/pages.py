"""Reading our Markdown: sentences, code blocks, links and headings of a page."""

import re
from typing import NamedTuple

from paths import ROOT

PAGES = (
    ROOT / "README.md",
    ROOT / "CONTRIBUTING.md",
    *sorted((ROOT / "docs").glob("*.md")),
    ROOT / "bench" / "results" / "README.md",
    ROOT / "tests" / "SEEDS.md",
)

FENCE = re.compile(r"^```(\w*)\n(.*?)^```$", re.MULTILINE | re.DOTALL)
NOT_RUN = re.compile(r"<!-- not run: (\S[^\n]*) -->\n\Z")
LINK = re.compile(r"!?\[([^\]]*)\]\(([^)\s]+)\)")
HEADING = re.compile(r"^#+ (.*)$", re.MULTILINE)


class Block(NamedTuple):
    """A fenced code block; `not_run`: the reason in the comment before it, "" for one that runs."""

    language: str
    code: str
    not_run: str


def blocks(text: str) -> list[Block]:
    """The code blocks of a page. A block of `text`, a formula or a diagram, is no code."""
    found = []
    for fence in FENCE.finditer(text):
        marker = NOT_RUN.search(text[: fence.start()])
        if fence[1] != "text":
            found.append(Block(fence[1], fence[2], marker[1] if marker else ""))
    return found


def indented(text: str) -> list[str]:
    """Lines outside blocks that Markdown would show as code."""
    return re.findall(r"^\n( {4}[^\s|].*)$", FENCE.sub("", text), re.MULTILINE)


def links(text: str) -> list[str]:
    """The targets of links outside code blocks."""
    return [target for _, target in LINK.findall(FENCE.sub("", text))]


def anchors(text: str) -> set[str]:
    """The names that links to a page's headings use, as GitHub makes them."""
    titles = (title.lower().replace("`", "") for title in HEADING.findall(FENCE.sub("", text)))
    return {re.sub(r"[^\w\- ]", "", title).strip().replace(" ", "-") for title in titles}


def sentences(text: str) -> list[list[str]]:
    """The sentences of a page, each a list of words.

    Code blocks, tables, headings and images are no sentences. A list item is a paragraph of its
    own. A span of code and a link's text count as they are read: the first is one word. A sentence
    ends at a full stop, a question mark or an exclamation mark, not at a colon or a semicolon.
    """
    text = re.sub(r"<!--.*?-->", "", FENCE.sub("\n\n", text), flags=re.DOTALL)
    paragraphs: list[str] = [""]
    for line in text.splitlines():
        if re.match(r"\s*\||#|!\[", line) or not line.strip():
            paragraphs.append("")
        elif item := re.match(r"\s*(?:[-*]|\d+\.) (.*)", line):
            paragraphs.append(item[1])
        else:
            paragraphs[-1] += f" {line.strip()}"
    found = []
    for paragraph in paragraphs:
        plain = LINK.sub(r"\1", re.sub(r"`[^`]+`", "code", paragraph)).replace("**", "")
        for sentence in re.split(r"(?<=[.!?])[)\"]?\s+", plain):
            words = [word for word in sentence.split() if re.search(r"\w", word)]
            if words:
                found.append(words)
    return found
