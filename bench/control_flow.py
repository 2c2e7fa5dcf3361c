"""A kernel's loops, found in its SASS, and what one pass of each issues.

Counts are of instructions that a warp issues on the fast path of one pass:

- Of two ways through a loop the longer counts, so what a condition may skip is in.
- An inner loop is not in its outer loop's count.
- A wait, a loop around mbarrier.try_wait, counts once. ptxas often makes of it a try in line and,
  for when it failed, a loop elsewhere that tries again: that one does not count.
- So does a loop over a warp's lanes (ELECT, BRA.U.ANY), which ptxas puts around a tensor core's or
  TMA's instruction where it does not see that one lane is elected or that operands are uniform.
"""

import re
from collections import Counter
from dataclasses import dataclass
from typing import NamedTuple

TRY = "SYNCS.PHASECHK"
"""SASS for mbarrier.try_wait and test_wait."""

Blocks = dict[int, "list[Instruction]"]
Flow = dict[int, set[int]]
"""Basic blocks by the address that they start at; the blocks that may follow or precede each."""


class Instruction(NamedTuple):
    """One SASS instruction, as in `0x0aa0: @!P0 BRA 0x3370`. Each takes 16 bytes."""

    address: int
    predicate: str
    opcode: str
    operands: str

    @property
    def target(self) -> int | None:
        """The address a BRA or BSSY names, None for the others."""
        named = re.search(r"0x[0-9a-f]+$", self.operands)
        return int(named[0], 16) if named and self.opcode.split(".")[0] in ("BRA", "BSSY") else None

    def is_a(self, *opcodes: str) -> bool:
        """Whether the opcode is one of these, with whatever modifiers after it."""
        return any(
            self.opcode == opcode or self.opcode.startswith(f"{opcode}.") for opcode in opcodes
        )


@dataclass(frozen=True)
class Loop:
    """A natural loop. `instructions`: one pass, counted as this file's head says. `inner`: the
    loops passed on the way, but for those that count once. `depth`: 0 for a loop in no other.
    """

    start: int
    depth: int
    instructions: tuple[Instruction, ...]
    inner: "tuple[Loop, ...]"

    @property
    def opcodes(self) -> Counter[str]:
        """A pass's own instructions by opcode with modifiers."""
        return Counter(i.opcode for i in self.instructions)

    def count(self, *opcodes: str) -> int:
        """How many of a pass's own instructions are one of these, inner loops left out."""
        return sum(i.is_a(*opcodes) for i in self.instructions)


def loops(instructions: list[Instruction]) -> list[Loop]:
    """Every loop but those that count once, outer ones before those in them. ValueError where they
    cannot be told: indirect branches, a loop with two entries.
    """
    blocks, after = _blocks(instructions)
    before = {at: {a for a in after if at in after[a]} for at in blocks}
    bodies = _natural_loops(after, before)
    found: dict[int, Loop] = {}
    once: dict[int, Loop] = {}
    retries: set[int] = set()
    for head, body in sorted(bodies.items(), key=lambda item: len(item[1])):
        passed: list[Instruction] = []
        inner = []
        for at in _longest_way(head, body - retries, blocks, after, bodies):
            if at in found:
                inner.append(found[at])
            else:
                passed += once[at].instructions if at in once else blocks[at]
        depth = sum(head in other for other in bodies.values()) - 1
        loop = Loop(head, depth, tuple(passed), tuple(inner))
        if not inner and loop.count(TRY) and not any(_works(i) for i in passed):
            once[head] = loop
            if _tried_before(head, body, blocks, after, before):
                retries |= body
        elif not inner and passed[-1].is_a("BRA.U.ANY"):
            once[head] = loop
        else:
            found[head] = loop
    return sorted(found.values(), key=lambda loop: (loop.depth, loop.start))


def _blocks(instructions: list[Instruction]) -> tuple[Blocks, Flow]:
    """The basic blocks that the entry reaches, by their addresses, and what follows each."""
    leaders = {instructions[0].address} | {i.target for i in instructions if i.target is not None}
    blocks: Blocks = {}
    after: Flow = {}
    rejoin: dict[str, int] = {}
    start, ends = 0, True
    for i in instructions:
        if ends or i.address in leaders:
            if not ends:
                after[start] = {i.address}
            start = i.address
        blocks.setdefault(start, []).append(i)
        barrier = i.operands.split(",")[0]
        ends = i.is_a("BRA", "EXIT", "RET", "BSYNC")
        follow = {i.address + 16}
        if i.is_a("BSSY") and i.target is not None:
            rejoin[barrier] = i.target
        elif i.is_a("BRX", "BRXU", "JMP", "JMX", "JMXU"):
            raise ValueError(f"loops: needs branches to known addresses, got {i}")
        elif i.is_a("BSYNC"):
            follow = {rejoin.get(barrier, i.address + 16)}
        elif ends and not i.is_a("BRA.DIV"):  # only a diverged warp takes that one
            # A condition is the guard, or BRA.U's first operand.
            follow = follow if i.predicate or "," in i.operands else set()
            follow |= {i.target} if i.target is not None else set()
        if ends:
            after[start] = follow
    reached, todo = set(), [instructions[0].address]
    while todo:
        if (at := todo.pop()) not in reached and at in blocks:
            reached.add(at)
            todo += after.get(at, ())
    return {at: blocks[at] for at in reached}, {at: after[at] & reached for at in reached}


def _natural_loops(after: Flow, before: Flow) -> Flow:
    """Loops by their first block: what reaches a branch back to it without passing it."""
    entry = min(after)
    dominators = {at: set(after) for at in after} | {entry: {entry}}
    changed = True
    while changed:
        changed = False
        for at in sorted(after):
            through = [dominators[p] for p in before[at]]
            now = ({at} | set.intersection(*through)) if at != entry and through else dominators[at]
            changed |= now != dominators[at]
            dominators[at] = now
    bodies: Flow = {}
    for at in after:
        for head in after[at] & dominators[at]:
            body, todo = bodies.setdefault(head, {head}), [at]
            while todo:
                if (block := todo.pop()) not in body:
                    body.add(block)
                    todo += before[block]
    return bodies


def _longest_way(head: int, body: set[int], blocks: Blocks, after: Flow, bodies: Flow) -> list[int]:
    """The blocks of the longest way from `head` back to it; a loop inside stands as its head."""
    within = sorted((h for h in bodies if h in body and h != head), key=lambda h: len(bodies[h]))
    owner = {at: h for h in within for at in bodies[h]}  # the outermost, which comes last
    ways: dict[int, tuple[int, list[int]] | None] = {}
    open_ways: set[int] = set()

    def way(at: int) -> tuple[int, list[int]] | None:
        if at in open_ways:
            raise ValueError(f"loops: needs loops with one entry, got one without at {at:#x}")
        if at not in ways:
            open_ways.add(at)
            inside = bodies[at] if at in within else {at}
            follow = set[int]().union(*(after[a] for a in inside))
            rest = [way(owner.get(a, a)) for a in (follow - inside) & body - {head}]
            if head in follow:
                rest.append((0, []))
            longest = max((r for r in rest if r), default=None)
            length = sum(len(blocks[a]) for a in inside)
            ways[at] = (length + longest[0], [at, *longest[1]]) if longest else None
            open_ways.remove(at)
        return ways[at]

    longest = way(head)
    assert longest, f"no way back to {head:#x}"
    return longest[1]


def _works(i: Instruction) -> bool:
    """Whether it reads or writes memory, or makes a unit work: a wait does nothing of it."""
    return i.opcode.startswith(("UT", "LD", "ST", "ATOM", "RED", "BAR", "SYNCS.ARRIVE"))


def _tried_before(head: int, body: set[int], blocks: Blocks, after: Flow, before: Flow) -> bool:
    """Whether a wait is entered only where a try in line failed."""
    at, entries = head, before[head] - body
    while len(entries) == 1:
        (at,) = entries
        if len(after[at]) > 1:
            return any(i.is_a(TRY) for i in blocks[at])
        entries = before[at]
    return False
