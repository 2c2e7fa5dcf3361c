"""Warps: their registers and program counters, and what they have observed of others."""

from collections.abc import Callable
from typing import Any

from nvfp4.emulator import ptx
from nvfp4.emulator.engine import library
from nvfp4.emulator.engine.knowledge import (
    ASK_EVENT,
    ASK_READERS,
    ASK_TENSOR,
    TO_PYTHON,
    Knowledge,
    Surroundings,
)
from nvfp4.emulator.engine.registers import Loading, Registers
from nvfp4.emulator.hazards import Event, Hazard, Kind, Unsupported, UnsupportedInstruction
from nvfp4.emulator.lanes import uniform
from nvfp4.emulator.machine.outcomes import BLOCKED, DIVERGED, YIELD
from nvfp4.emulator.ptx.registers import named_by, read_by

_FAR = 1 << 60
_QUESTIONS = 100
"""The questions after which Python runs an access itself: the engine forgets answers."""


class Warp:
    """32 threads, which share `pc` until they diverge; then each fragment has a pc and lanes."""

    __slots__ = (
        "registers", "program", "steps", "pc", "mask", "full", "live", "limit", "fragments", "cta",
        "cluster", "machine", "index", "parked", "seen", "fenced", "released", "span", "init_span",
        "inits", "batch", "pipe_seen", "bulk", "bulk_groups", "loading", "acquired", "state",
        "compiled", "_known", "_told",
    )  # fmt: skip

    def __init__(
        self, cta: Any, index: int, live: int, registers: Registers, around: Surroundings
    ) -> None:
        self.cta, self.cluster, self.machine = cta, cta.cluster, cta.cluster.machine
        self.index = index
        self.program = self.machine.launch.program
        self.steps = self.program.steps
        self.compiled = self.program.code.compiled
        self.registers = registers
        self._known = Knowledge(self.program.code, registers, around)
        self._told: tuple[int, int] = (-1, -1)  # what the engine knows of the next two lines
        self.pc = 0
        self.mask = self.live = live
        self.full = True
        self.limit = _FAR
        self.fragments: list[list[int]] = []  # of the other lanes: [pc, lanes, blocked]
        self.parked = False
        # Sets of events: those it has observed, the generic writes among them that lie behind a
        # proxy fence, and those that its fences have released.
        self.seen = self.fenced = self.released = 0
        # The events of its ordinary accesses and of its mbarrier.init now; all of the latter.
        self.span = self.init_span = self.inits = 0
        # The event of the tensor core work it issues now, and what that work has observed.
        self.batch = self.pipe_seen = 0
        self.bulk: list[Any] = []  # bulk stores not yet in a group
        self.bulk_groups: list[list[Any]] = []  # the stores of each group, oldest first
        self.loading: list[tuple[Loading, list[int]]] = []  # of each tcgen05.ld before the wait
        self.acquired = 0  # the CTAs (bits) whose releases it has acquired at .gpu scope
        self.state: dict[Any, Any] = {}

    @property
    def where(self) -> str:
        return f"CTA {self.cta.index} warp {self.index}"

    def run(self, budget: int) -> int:
        """Run about `budget` instructions, and return how many ran.

        The engine runs those that touch registers only, and may run over the budget with them.
        """
        steps, compiled, pc, left = self.steps, self.compiled, self.pc, budget
        engine, pointer = library.run(), self._known.pointer
        asked = 0
        try:
            while left > 0:
                if compiled[pc]:
                    if self._told[0] is not self.seen or self._told[1] != self.span:
                        self._tell()
                    split = bool(self.fragments)
                    done = engine(pointer, pc, left, self.mask, self.limit, self.full, split)
                    left -= done >> 32
                    pc = done >> 3 & 0x1FFFFFFF
                    answer = done & 7
                    if not answer:
                        if pc >= self.limit:
                            self._select(pc)
                            pc = self.pc
                        continue
                    if answer != TO_PYTHON and asked < _QUESTIONS:
                        asked += 1
                        self._answer(answer, pc)
                        continue
                    asked = 0
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
            line = self.program.kernel.instructions[pc]
            raise hazard.at(line.line, line.text, self.where) from None
        except Unsupported as error:
            line = self.program.kernel.instructions[pc]
            raise UnsupportedInstruction(line.line, line.text, str(error)) from None
        self.pc = pc
        return budget - left

    def _tell(self) -> None:
        """Tell the engine what the warp has observed."""
        may = not self.machine.waits_for_grids or bool(self.seen & self.cluster.grid_waits)
        self._known.update(self.seen, self.span, may)
        self._told = self.seen, self.span

    def _answer(self, question: int, pc: int) -> None:
        """Answer a question of the engine about the access at `pc`, which it then tries again."""
        known, events = self._known, self.cluster.events
        about = known.question
        if question == ASK_EVENT:
            self.event(self.program.kernel.instructions[pc])
        elif question == ASK_TENSOR:
            self.machine.memory.tensors[about].record(self, self.span)
            known.is_recorded(about, self.span)
        elif question == ASK_READERS:
            known.read_makes(about, events.group_after_read(about, self.span, self.seen))
        else:
            known.is_clear(about, not events.group(about) & ~self.seen)

    def without_value(self, line: ptx.Instruction) -> int | None:
        """Report the register for whose missing value the engine could not run an instruction."""
        registers, slots = self.registers, self.program.registers
        reads = read_by(line)
        for register in (*named_by(line), *reads):
            slot = slots[register.name]
            if registers.is_loading(slot) or register in reads and not registers.has_value(slot):
                raise registers.missing(slot)
        raise RuntimeError(f"PTX line {line.line}: the engine did not run {line.text}")

    def diverge(self, target: int, lanes: int, fall: int) -> int:
        """Send some lanes to `target` and the others to `fall`; the lower pc runs first."""
        self.fragments.append([target, lanes, 0])
        self.mask &= ~lanes
        self._select(fall)
        return DIVERGED

    def _select(self, pc: int) -> bool:
        """Go on with the lowest fragment that is not blocked, and all lanes at its pc."""
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
        """Block the running lanes; say whether others can run, and park the warp if not."""
        if self.fragments:
            self.fragments.append([pc, self.mask, 1])
            self.mask = 0
            if self._select(pc):
                return True
        self.parked = True
        return False

    def wake(self) -> None:
        """Let blocked lanes try again, because what they wait for may have happened."""
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
        """Return BLOCKED until all live lanes are at this instruction of the whole warp."""
        if self.full:
            return None
        if not self.fragments or all(blocked for _, _, blocked in self.fragments):
            raise Hazard(
                Kind.PARTIAL_WARP, f"the whole warp must run this, not lanes {self.mask:#010x}"
            )
        return BLOCKED

    # What instructions need of a warp

    def one_lane(self) -> None:
        """Refuse an instruction that is for one lane and that several lanes issue."""
        if self.mask & (self.mask - 1):
            raise Hazard(
                Kind.MANY_LANES,
                f"{self.mask.bit_count()} lanes issue this; one of them is meant to",
            )

    def uniform(self, slot: int, what: str) -> int:
        """Give a source of an instruction that acts for the warp, not for each lane."""
        value = uniform(self.registers[slot], self.mask)
        if value is None:
            raise Hazard(Kind.MANY_LANES, f"the lanes differ in the {what}")
        return value

    def placed(self, instruction: ptx.Instruction, work: Callable[[], None]) -> Callable[[], None]:
        """Make asynchronous work of an instruction name its place in the hazards that it finds."""

        def run() -> None:
            try:
                work()
            except Hazard as hazard:
                raise hazard.at(instruction.line, instruction.text, self.where) from None

        return run

    # What others wait for

    def new_event(self, what: str, instruction: ptx.Instruction, generic: bool = False) -> int:
        """Number something that others may have to wait for."""
        event = Event(what, instruction.line, self.where)
        return self.cluster.events.new(event, generic)

    def event(self, instruction: ptx.Instruction) -> int:
        """Give the event of the warp's ordinary accesses, a new one after each release."""
        if not self.span:
            what = "ordinary accesses from here on"
            self.span = self.new_event(what, instruction, generic=True)
            self.seen |= 1 << self.span
        return self.span

    def atomic_event(self, instruction: ptx.Instruction) -> int:
        """Give the event of the warp's atomics, which do not wait for those of other warps."""
        span = self.event(instruction)
        known, number = self.state.get("atomics", (0, 0))
        if known != span:
            number = self.new_event("atomics from here on", instruction, generic=True)
            self.cluster.events.atomic |= 1 << number
            self.seen |= 1 << number
            self.state["atomics"] = (span, number)
        return number

    def release(self) -> tuple[int, int]:
        """Give (observed, fenced) to pass on to those that wait for what the warp does now."""
        self.span = self.init_span = 0
        return self.seen, self.fenced

    def acquire(self, seen: int, fenced: int) -> None:
        self.seen |= seen
        self.fenced |= fenced

    def release_to_gpu(self) -> None:
        """Release the global writes of the warp's CTA to every later acquire on the GPU."""
        self.machine.released |= 1 << self.cta.number

    def acquire_from_gpu(self) -> None:
        self.acquired |= self.machine.released

    def wait_for_grids(self, instruction: ptx.Instruction) -> None:
        """Allow global memory to this warp and to warps that wait for it (griddepcontrol.wait)."""
        cluster = self.cluster
        if not self.seen & cluster.grid_waits:
            event = self.new_event("griddepcontrol.wait", instruction)
            self.seen |= 1 << event
            cluster.grid_waits |= 1 << event

    def access_global(self) -> None:
        """Refuse global memory before griddepcontrol.wait, if the kernel has it."""
        if self.machine.waits_for_grids and not self.seen & self.cluster.grid_waits:
            raise Hazard(
                Kind.GRID_DEPENDENCY, "global memory is accessed without waiting for"
                " griddepcontrol.wait, which this kernel has"
            )  # fmt: skip
