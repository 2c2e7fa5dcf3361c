"""A warp: 32 threads, their registers and program counters, and what they know of others."""

from typing import Any

import numpy as np

from nvfp4.emulator import ptx
from nvfp4.emulator.hazards import (
    Event,
    Hazard,
    Kind,
    Unsupported,
    UnsupportedInstruction,
)
from nvfp4.emulator.isa.program import BLOCKED, DIVERGED, YIELD
from nvfp4.emulator.lanes import Loading, flags, spread

_FAR = 1 << 60


class Warp:
    """32 threads. While they run together `pc` is theirs; else each fragment has a pc and lanes."""

    __slots__ = (
        "registers", "program", "steps", "pc", "mask", "full", "live", "limit", "fragments", "cta",
        "cluster", "machine", "index", "parked", "seen", "fenced", "released", "span", "init_span",
        "inits", "batch", "pipe_seen", "bulk", "bulk_groups", "loading", "acquired", "state",
    )  # fmt: skip

    def __init__(self, cta: Any, index: int, live: int, registers: list[Any]) -> None:
        self.cta, self.cluster, self.machine = cta, cta.cluster, cta.cluster.machine
        self.index = index
        self.program = self.machine.launch.program
        self.steps = self.program.steps
        self.registers = registers
        self.pc = 0
        self.mask = self.live = live
        self.full = True
        self.limit = _FAR
        self.fragments: list[list[int]] = []  # others: [pc, lanes, blocked]
        self.parked = False
        # What it has observed, which generic writes of it lie behind a proxy fence, what its fences
        # have released, and the event of what it writes and reads now.
        self.seen = self.fenced = self.released = 0
        self.span = self.init_span = self.inits = 0
        # The event of the tensor core work it issues now; what that work and all before it know.
        self.batch = self.pipe_seen = 0
        self.bulk: list[Any] = []  # bulk stores not yet in a group
        self.bulk_groups: list[list[Any]] = []  # those of each group, oldest first
        self.loading: list[tuple[int, Loading]] = []  # registers of tcgen05.ld, until the wait
        self.acquired = 0  # the CTAs (bits) whose releases to the whole GPU came before its acquire
        self.state: dict[Any, Any] = {}

    @property
    def where(self) -> str:
        return f"CTA {self.cta.index} warp {self.index}"

    def run(self, budget: int) -> int:
        """Runs up to `budget` instructions; how many it ran."""
        steps, pc, left = self.steps, self.pc, budget
        try:
            while left > 0:
                left -= 1
                outcome = steps[pc](self)
                if outcome is None:
                    pc += 1
                elif outcome >= 0:
                    back = outcome <= pc
                    pc = outcome
                    if back and self.fragments:
                        self._select(pc)
                        pc = self.pc
                elif outcome == YIELD:
                    pc += 1
                    break
                elif outcome == BLOCKED:
                    if not self._block(pc):
                        break
                    pc = self.pc
                elif outcome == DIVERGED:
                    pc = self.pc
                elif not self._end():  # outcome == ENDED
                    break
                else:
                    pc = self.pc
                if pc >= self.limit:
                    self._select(pc)
                    pc = self.pc
        except Hazard as hazard:
            line = self.program.lines[pc]
            raise hazard.at(line.line, line.text, self.where) from None
        except Unsupported as error:
            line = self.program.lines[pc]
            raise UnsupportedInstruction(line.line, line.text, str(error)) from None
        except (TypeError, AttributeError) as error:
            line = self.program.lines[pc]
            if (missing := self._without_value(line)) is None:
                raise
            raise missing.at(line.line, line.text, self.where) from error
        self.pc = pc
        return budget - left

    def _without_value(self, line: ptx.Instruction) -> Hazard | None:
        """What is wrong with an instruction that could not use its registers."""
        for slot in self.program.named_by(line):
            if self.registers[slot].__class__ is Loading:
                return Hazard(Kind.EARLY_READ, str(self.registers[slot]))
        if any(self.registers[slot] is None for slot in self.program.read_by(line)):
            return Hazard(Kind.UNINITIALISED, "a register is read that was never written")
        return None

    def merge(self, slot: int, value: Any) -> None:
        """Writes a register in the lanes that run; the others keep theirs."""
        old = self.registers[slot]
        bits = self.program.bits[slot]
        if bits == 1:
            old = old or 0
            value = old & ~self.mask | value & self.mask
        elif old is not None and not (value.__class__ is int is old.__class__ and value == old):
            value = np.where(flags(self.mask), spread(value, bits), spread(old, bits))
        self.registers[slot] = value

    def diverge(self, target: int, lanes: int, fall: int) -> int:
        """Some lanes go to `target`, the others to `fall`; the lower pc runs first."""
        self.fragments.append([target, lanes, 0])
        self.mask &= ~lanes
        self._select(fall)
        return DIVERGED

    def _select(self, pc: int) -> bool:
        """Takes up the lowest fragment that is not blocked, with all lanes that are there."""
        merged: dict[int, list[int]] = {}
        if self.mask:
            self.fragments.append([pc, self.mask, 0])
        for at, lanes, blocked in self.fragments:
            if at in merged:
                merged[at][1] |= lanes
                merged[at][2] = 0
            else:
                merged[at] = [at, lanes, blocked]
        order = sorted(merged.values())
        for position, (at, lanes, blocked) in enumerate(order):
            if not blocked:
                self.pc, self.mask = at, lanes
                self.full = lanes == self.live
                self.fragments = order[:position] + order[position + 1 :]
                self.limit = order[position + 1][0] if position + 1 < len(order) else _FAR
                return True
        self.pc, self.mask, self.limit = order[0][0], order[0][1], _FAR
        self.full = self.mask == self.live
        self.fragments = order[1:]
        return False

    def _block(self, pc: int) -> bool:
        """The running lanes wait. Whether others can run; if not, the warp is parked."""
        if self.fragments:
            self.fragments.append([pc, self.mask, 1])
            self.mask = 0
            if self._select(pc):
                return True
        self.parked = True
        return False

    def wake(self) -> None:
        """What blocked lanes of this warp wait for may have happened."""
        for fragment in self.fragments:
            fragment[2] = 0
        if self.parked:
            self.parked = False
            self.machine.runnable.append(self)

    def _end(self) -> bool:
        self.live &= ~self.mask
        self.mask = 0
        if not self.live:
            self.cta.warp_ended(self)
            return False
        self._select(self.pc)
        return True

    def converge(self) -> int | None:
        """For instructions of whole warps: BLOCKED until all live lanes are here."""
        if self.full:
            return None
        if not self.fragments or all(blocked for _, _, blocked in self.fragments):
            raise Hazard(
                Kind.PARTIAL_WARP, f"the whole warp must run this, not lanes {self.mask:#010x}"
            )
        return BLOCKED

    # What others may wait for

    def event(self, instruction: ptx.Instruction) -> int:
        """The event that this warp's ordinary reads and writes belong to until it releases."""
        if not self.span:
            event = Event("ordinary accesses from here on", instruction.line, self.where)
            self.span = self.cluster.events.new(event, generic=True)
            self.seen |= 1 << self.span
        return self.span

    def release(self) -> tuple[int, int]:
        """(observed, fenced) as they are handed to whoever waits for what the warp does now."""
        self.span = self.init_span = 0
        return self.seen, self.fenced

    def acquire(self, seen: int, fenced: int) -> None:
        self.seen |= seen
        self.fenced |= fenced

    def release_to_gpu(self) -> None:
        """Its CTA's global writes until now are seen by whoever acquires from now on."""
        self.machine.released |= 1 << self.cta.number

    def acquire_from_gpu(self) -> None:
        self.acquired |= self.machine.released

    def wait_for_grids(self, line: int) -> None:
        """griddepcontrol.wait: this warp, and who waits for it, may access global memory."""
        cluster = self.cluster
        if not self.seen & cluster.grid_waits:
            event = cluster.events.new(Event("griddepcontrol.wait", line, self.where))
            self.seen |= 1 << event
            cluster.grid_waits |= 1 << event

    def access_global(self) -> None:
        """Before an access to global memory: the grids before this one have ended, if it waits."""
        if self.machine.waits_for_grids and not self.seen & self.cluster.grid_waits:
            raise Hazard(
                Kind.GRID_DEPENDENCY, "global memory is accessed without waiting for"
                " griddepcontrol.wait, which this kernel has"
            )  # fmt: skip
