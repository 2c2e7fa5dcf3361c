"""Finding and replacing instructions in a kernel's PTX: what mutations.py is made of.

Blocks are matched as backends/cutedsl/gemm/ptx.py emits them; which barrier one is about follows
from the offset that its address was computed with.
"""

import re
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Literal

from nvfp4.emulator import Kind

Outcome = Kind | Literal["deadlock", "wrong output"]
Find = Callable[[str], Iterable[re.Match[str]]]
Put = str | Callable[[re.Match[str]], str]


@dataclass(frozen=True)
class Edit:
    """One fault, put into a kernel's PTX.

    kernel: of KERNELS in emulator/test_mutations.py. find: what is there `matches` times (None:
    once or more); `unrolled`: so often in each of the copies that the compiler makes of the MMA
    loop. put: what replaces those of `at`, or all of them. caught: what counts as noticed; nothing,
    where the emulator notices nothing.
    """

    kernel: str
    name: str
    find: str | Find
    put: Put
    caught: frozenset[Outcome]
    why: str
    matches: int | None = 1
    at: tuple[int, ...] = ()
    unrolled: bool = False

    def __str__(self) -> str:
        return f"{self.kernel}: {self.name}"

    def apply(self, ptx: str) -> str:
        """The PTX with the fault; LookupError if the kernel is not as the edit knows it."""
        search = self.find if callable(self.find) else re.compile(self.find).finditer
        found = list(search(ptx))
        copies = len(re.findall(MMA, ptx)) // K_BLOCKS if self.unrolled else 1
        needed = copies * (self.matches or 1)
        if len(found) < needed or self.matches and len(found) != needed:
            or_more = "" if self.matches else " or more"
            raise LookupError(
                f"{self}: {self.find} is in the PTX {len(found)} times, needs {needed}{or_more};"
                " where the kernel has changed, so must the edit"
            )
        edited, end = "", 0
        for i, match in enumerate(found):
            put = self.put(match) if callable(self.put) else match.expand(self.put)
            chosen = not self.at or i % (self.matches or 1) in self.at
            edited += ptx[end : match.start()] + (put if chosen else match[0])
            end = match.end()
        return edited + ptx[end:]


# The blocks.

K_BLOCKS = 4
"""MMAs of a stage."""


def elected(instruction: str) -> str:
    """A block for one lane. Group 1 is its instruction."""
    start = r"\{\n\.reg \.pred elected;\nelect\.sync _\|elected, -1;\n@elected "
    return rf"{start}({instruction};)\n\}}"


WAIT = (
    r"\{\n\.reg \.pred done;\nWAIT:\n(mbarrier\.try_wait\.parity\S* done, \[(%r\d+)\]), (%r\d+);\n"
    r"@!done bra WAIT;\n\}"
)

ACC_FULL_WAIT = rf"{WAIT}(?=(?:(?!WAIT:)[\s\S])*?tcgen05\.ld)"
"""The epilogue's; not of split-K, where a wait for the partials follows."""
EXPECT = elected(r"mbarrier\.arrive\.expect_tx\.shared::cta\.b64 _, \[%r\d+\], (\d+)")
ARRIVE = elected(r"mbarrier\.arrive\.shared::cta\.b64 _, \[(%r\d+)\]")
ARRIVE_AT = elected(r"mbarrier\.arrive\.relaxed\.cluster[^;]*")
LOAD = elected(r"cp\.async\.bulk\.tensor\.2d\S*\.shared::cluster[^;]*")
"""Of A, B, A's scales, B's scales."""
STORE = elected(r"cp\.async\.bulk\.tensor\.2d\.global[^;]*")
COMMIT = elected(r"tcgen05\.commit\S* \[(%r\d+)\][^;]*")
COPY = r"@elected (tcgen05\.cp[^;]*;)"
"""A's scales of each K = 64, then B's."""
COPY_SOURCE = r"mov\.b64 source, \{%r\d+, (\d+)\};"
MMA = r"@elected (tcgen05\.mma[^;]*;)"
MMA_A = r"mov\.b64 a, \{%r\d+, (\d+)\};"
MMA_B = r"mov\.b64 b, \{%r\d+, (\d+)\};"
MMA_KIND = r"mov\.b32\s+%r\d+, (\d{9});"
"""The instruction descriptor: the only numbers of nine digits."""
ACCUMULATE = r"setp\.ne\.b32 accumulate, %r\d+, 0;"
STAGE_OF_LOADS = r"(?:mad\.lo|mul\.lo)\.s32\s+%r\d+, %r\d+, (\d{5})[,;]"
STAGE_OF_MMAS = r"mad\.lo\.s32\s+%r\d+, %r\d+, (\d{4}),"
SECOND_ACCUMULATOR = r"mad\.lo\.s32\s+%r\d+, %r\d+, (\d{3}), %r\d+;"
INIT = r"mbarrier\.init\.shared::cta\.b64 \[(%r\d+)\], (\d+);"
ALLOC = r"tcgen05\.alloc\.\S+ \[%r\d+\], (\d+);"
FREE = r"tcgen05\.dealloc\.\S+ (%r\d+), (\d+);"
TMEM_LOAD = r"(tcgen05\.ld\.[^\]]*\[%r\d+)\];"
LAST_TMEM_LOAD_AND_RELEASE = (
    r"(tcgen05\.ld(?:(?!tcgen05\.ld)[\s\S])*?)"
    rf"(add\.s32\s+%r\d+, %r\d+, \d+;\n(?:\s*//.*\n|\s*tcgen05\.fence.*\n)*\s*{ARRIVE})"
)
BULK_WAIT = r"cp\.async\.bulk\.wait_group\.read\s+(\d+);"
CLUSTER_BARRIER = r"barrier\.cluster\.arrive\.relaxed;\s+barrier\.cluster\.wait;"
LAST_CLUSTER_BARRIER = r"barrier\.cluster\.arrive;\s+barrier\.cluster\.wait;"
BEFORE = r"tcgen05\.fence::before_thread_sync;"
AFTER = r"tcgen05\.fence::after_thread_sync;"
LOADED = r"tcgen05\.wait::ld\.sync\.aligned;"
RELEASE = r"fence\.release\.sync_restrict\S*;"
ACQUIRE = r"fence\.acquire\.sync_restrict\S*;"
MAPA_TO_ARRIVE = r"(mapa\.shared::cluster\.u32 %r\d+, %r\d+), %r\d+;(?=[^;]*elected;)"
MAPA_TO_LOAD = r"(mapa\.shared::cluster\.u32 %r\d+, %r\d+), %r\d+;(?=[^;]*ld\.shared::cluster)"

BARRIERS = {
    "full": 0,
    "empty": 1,
    "acc_full": -5,
    "acc_empty": -4,
    "partial_full": -1,
}
"""Where the initialisation of each is: those of the first stage, of the first accumulator."""


def tail_waits(ptx: str) -> list[re.Match[str]]:
    """Find the load warp's waits after its last tile: one for each stage."""
    stages = (len(re.findall(INIT, ptx)) + BARRIERS["acc_full"]) // 2
    end = ptx.index("griddepcontrol.launch_dependents")
    return [match for match in re.finditer(WAIT, ptx) if match.start() > end][:stages]


@dataclass(frozen=True)
class On:
    """The blocks about one barrier: those whose address is its offset and more."""

    barrier: str
    block: str

    def __call__(self, ptx: str) -> list[re.Match[str]]:
        initialised = [offset(ptx, match) for match in re.finditer(INIT, ptx)]
        wanted = initialised[BARRIERS[self.barrier]]
        return [match for match in re.finditer(self.block, ptx) if offset(ptx, match) == wanted]


def offset(ptx: str, match: re.Match[str]) -> int:
    """The constants that were added up to the address that a block is about, its only one in
    brackets.
    """
    address = re.search(r"\[(%r\d+)\]", match[0])
    assert address, match[0]
    total, register, before = 0, address[1], ptx[: match.start()]
    while added := re.findall(rf"add\.s32\s+{register}, (%r\d+), (-?\d+);", before):
        register, constant = added[-1]
        total += int(constant)
    return total


# What is put there.

DROP = ""
TWICE = r"\g<0>\n\g<0>"
ALL_LANES = r"\1"
OTHER_PARITY = (
    r"{\n.reg .pred done;\n.reg .b32 other;\nxor.b32 other, \3, 1;\nWAIT:\n\1, other;"
    r"\n@!done bra WAIT;\n}"
)


def to(value: int) -> Put:
    """Another number for the match's last group."""
    return number(lambda n: value)


def plus(value: int) -> Put:
    return number(lambda n: n + value)


def number(change: Callable[[int], int]) -> Put:
    def put(match: re.Match[str]) -> str:
        start, end = (at - match.start() for at in match.span(match.re.groups))
        return f"{match[0][:start]}{change(int(match[0][start:end]))}{match[0][end:]}"

    return put


def within(old: str, new: str) -> Put:
    """Another text for the pattern `old`, which is in the match once."""

    def put(match: re.Match[str]) -> str:
        text, count = re.subn(old, new, match[0])
        assert count == 1, f"{old} is {count} times in {match[0]}"
        return text

    return put


def mask(operation: str) -> Put:
    """A block with `operation` ("and 3") applied to its mask of CTAs, the only 16-bit register."""
    name, value = operation.split()

    def put(match: re.Match[str]) -> str:
        register = re.search(r"%rs\d+", match[0])
        assert register, match[0]
        begin = f"{{\n.reg .b16 mask;\n{name}.b16 mask, {register[0]}, {value};\n"
        return begin + match[0].removeprefix("{\n").replace(register[0], "mask")

    return put


def at_own_rank(address: str, bits: int) -> Put:
    """A block with the rank of the running CTA set in the shared::cluster address `address`."""

    def put(match: re.Match[str]) -> str:
        register = re.search(address, match[0])
        assert register, match[0]
        begin = "{\n.reg .b32 rank;\n.reg .b64 wide;\nmov.u32 rank, %cluster_ctarank;\n"
        begin += "shl.b32 rank, rank, 24;\ncvt.u64.u32 wide, rank;\n"
        own = "wide" if bits == 64 else "rank"
        begin += f"or.b{bits} {own}, {own}, {register[1]};\n"
        return begin + match[0].removeprefix("{\n").replace(f"[{register[1]}]", f"[{own}]")

    return put
