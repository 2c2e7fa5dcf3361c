"""Single edits to the PTX of real kernels, and what the emulator must say of each.

An edit is found by a pattern, which must match as often as is written here: one that does not is an
error of this table, not a fault that went unnoticed. "once" in a comment below is once in the
source; what the compiler unrolled is edited everywhere.
"""

import re
from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

from nvfp4.backends.cutedsl.emulator import Kind

Outcome = Kind | Literal["deadlock", "wrong output"]
Put = str | Callable[[re.Match[str]], str]


@dataclass(frozen=True)
class Edit:
    """One fault.

    kernel: of KERNELS in test_emulator_mutations.py. find: a pattern that is in its PTX `matches`
    times; put: what replaces those of `at`, or all. caught: what counts as noticed, empty where the
    emulator cannot notice it. sometimes: only under some schedules.
    """

    kernel: str
    name: str
    find: str
    put: Put
    why: str
    caught: frozenset[Outcome]
    matches: int = 1
    at: tuple[int, ...] = ()
    sometimes: bool = False

    def __str__(self) -> str:
        return f"{self.kernel}: {self.name}"

    def apply(self, ptx: str) -> str:
        found = list(re.finditer(self.find, ptx))
        if len(found) != self.matches:
            raise LookupError(
                f"{self}: {self.find!r} is in the PTX {len(found)} times, needs {self.matches};"
                " the kernel has changed, and so must tests/mutations.py"
            )
        edited, end = "", 0
        for i, match in enumerate(found):
            put = self.put(match) if callable(self.put) else match.expand(self.put)
            edited += ptx[end : match.start()] + (put if not self.at or i in self.at else match[0])
            end = match.end()
        edited += ptx[end:]
        if edited == ptx:
            raise LookupError(f"{self}: the edit changes nothing")
        return edited


# What the edits look for. ptx.py of the kernel emits these blocks.

_WAIT = (
    r"\{\n\.reg \.pred done;\nWAIT:\n(mbarrier\.try_wait\.parity\S* done, \[%r\d+\]), (%r\d+);\n"
    r"@!done bra WAIT;\n\}"
)
_BEFORE_THE_NEXT_WAIT = r"(?:(?!WAIT:)[\s\S])*?"


def _wait(then: str, until: str = "") -> str:
    """The wait after which, and before any other wait, `then` comes and `until` does not."""
    no = rf"(?!{_BEFORE_THE_NEXT_WAIT}{until})" if until else ""
    return rf"{_WAIT}(?={_BEFORE_THE_NEXT_WAIT}{then}){no}"


EMPTY_WAIT = _wait("expect_tx")
FULL_WAIT = _wait(r"tcgen05\.cp")
ACC_EMPTY_WAIT = _wait(r"(?:nounroll|tcgen05\.commit)", r"(?:tcgen05\.cp|expect_tx)")
ACC_FULL_WAIT = _wait(r"tcgen05\.ld")
"""Of split-K: the wait between that one and the loads, for the peers to have read the partials."""

OTHER_PARITY = (
    "{\n.reg .pred done;\n.reg .b32 other;\nxor.b32 other, \\2, 1;\nWAIT:\n\\1, other;\n"
    "@!done bra WAIT;\n}"
)


def _elected(instruction: str) -> str:
    """A block for one lane; group 1 is its instruction, whose other groups follow."""
    block = r"\{\n\.reg \.pred elected;\nelect\.sync _\|elected, -1;\n@elected "
    return rf"{block}({instruction}[^;]*;)\n\}}"


EXPECT = _elected(r"mbarrier\.arrive\.expect_tx")
ARRIVE = _elected(r"mbarrier\.arrive\.shared::cta")
ARRIVE_AT_CLUSTER = _elected(r"mbarrier\.arrive\.release\.cluster")
LOAD = _elected(r"cp\.async\.bulk\.tensor\.2d\S*\.shared::cluster")
STORE = _elected(r"cp\.async\.bulk\.tensor\.2d\.global")
COMMIT = _elected(r"tcgen05\.commit")
_COPY = r"@elected (tcgen05\.cp[^;]* \[)(%r\d+)(\], source;)"
_MMA = r"@elected (tcgen05\.mma[^;]*;)"
INIT = r"mbarrier\.init\.shared::cta\.b64 \[%r\d+\], (\d+);"
FREE = r"tcgen05\.dealloc\.\S+ %r\d+, (\d+);"
ALLOC = r"(tcgen05\.alloc\.\S+ \[%r\d+\], )(\d+);"


def number(change: Callable[[int], int]) -> Put:
    """Replaces the last group, a number, by `change` of it."""

    def put(match: re.Match[str]) -> str:
        start, end = (at - match.start() for at in match.span(match.re.groups))
        return f"{match[0][:start]}{change(int(match[0][start:end]))}{match[0][end:]}"

    return put


def replace(old: str, new: str) -> Put:
    """Replaces a text within the match, once."""

    def put(match: re.Match[str]) -> str:
        assert match[0].count(old) == 1, (old, match[0])
        return match[0].replace(old, new)

    return put


def swap(old: str, new: str) -> Put:
    """The same, by a pattern."""

    def put(match: re.Match[str]) -> str:
        text, count = re.subn(old, new, match[0])
        assert count == 1, (old, match[0])
        return text

    return put


TWICE = r"\g<0>\n\g<0>"
DROP = ""
ALL_LANES = r"\1"


def _caught(*outcomes: Outcome) -> frozenset[Outcome]:
    return frozenset(outcomes)


ONE, PAIR, MULTICAST, SPLIT_K = "one CTA", "pair", "multicast", "split-K"
X = frozenset()

EDITS = (
    # mbarrier waits
    Edit(ONE, "no full wait", FULL_WAIT, DROP, "MMAs read a stage that TMA may still fill", X),
    Edit(ONE, "no empty wait", EMPTY_WAIT, DROP, "TMA fills a stage that MMAs may still read", X),
    Edit(ONE, "no accumulator-full wait", ACC_FULL_WAIT, DROP, "read before the MMAs end", X),
    Edit(
        ONE, "no accumulator-empty wait", ACC_EMPTY_WAIT, DROP, "overwritten while it is read", X, 2
    ),
    Edit(ONE, "full wait, wrong parity", FULL_WAIT, OTHER_PARITY, "passes a phase early", X),
    Edit(
        ONE,
        "empty wait, wrong parity",
        EMPTY_WAIT,
        OTHER_PARITY,
        "waits for a phase that never ends",
        X,
    ),
    Edit(
        ONE, "accumulator-full wait, wrong parity", ACC_FULL_WAIT, OTHER_PARITY, "a phase early", X
    ),
    Edit(
        ONE,
        "accumulator-empty wait, wrong parity",
        ACC_EMPTY_WAIT,
        OTHER_PARITY,
        "never ends",
        X,
        2,
    ),
    # transaction counts
    Edit(ONE, "16 bytes too many expected", rf"{EXPECT[:-4]}", DROP, "", X),
)
