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
from nvfp4.emulator.machine.passed import NOTHING, Passed, to_all
from nvfp4.emulator.memory.shadow import Access
from nvfp4.emulator.ptx.registers import named_by, read_by

_FAR = 1 << 60
_QUESTIONS = 100
"""The questions after which Python runs an access itself: the engine forgets answers."""
_ACCESSES = {
    Access.OWN_SHARED: "ordinary accesses to shared memory from here on",
    Access.PEER_SHARED: "ordinary accesses to another CTA's shared memory from here on",
    Access.GLOBAL: "ordinary accesses to global memory from here on",
    Access.TENSOR: "accesses to tensor memory from here on",
    Access.ATOMIC: "atomics from here on",
}


class Warp:
    """32 threads, which share `pc` until they diverge; then each fragment has a pc and lanes."""

    __slots__ = (
        "registers", "program", "steps", "pc", "mask", "full", "live", "limit", "fragments", "cta",
        "cluster", "machine", "index", "parked", "seen", "fenced", "released", "pending", "spans",
        "init_span", "inits", "unfenced", "unwaited", "unentered", "batch", "pipe_seen", "bulk",
        "bulk_groups", "loading", "acquired", "state", "compiled", "_known", "_told",
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
        self._told: tuple[int, int, int] = (-1, -1, -1)  # what it knows of `seen` and `spans`
        self.pc = 0
        self.mask = self.live = live
        self.full = True
        self.limit = _FAR
        self.fragments: list[list[int]] = []  # of the other lanes: [pc, lanes, blocked]
        self.parked = False
        # Sets of events: those it has observed, and the generic writes among them that lie behind a
        # proxy fence.
        self.seen = self.fenced = 0
        # What its fences have released to relaxed arrivals, and what its relaxed waits have left to
        # a fence.
        self.released = self.pending = NOTHING
        # The events of its accesses now, one of each kind, and of its mbarrier.init; all of these.
        self.spans = [0] * len(Access)
        self.init_span = self.inits = 0
        # Events of tensor memory: its own without a tcgen05.fence::before_thread_sync yet, and of
        # those the ones before tcgen05.wait::ld and ::st; others' that it has observed, without a
        # tcgen05.fence::after_thread_sync since.
        self.unfenced = self.unentered = 0
        self.unwaited = {"ld": 0, "st": 0}
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
                    told, spans = self._told, self.spans
                    if told[0] is not self.seen or told[1:] != (spans[0], spans[2]):
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
        shared, world = self.spans[Access.OWN_SHARED], self.spans[Access.GLOBAL]
        self._known.update(self.seen, shared, world, may)
        self._told = self.seen, shared, world

    def _answer(self, question: int, pc: int) -> None:
        """Answer a question of the engine about the access at `pc`, which it then tries again."""
        known, events = self._known, self.cluster.events
        about = known.question
        shared, world = self.spans[Access.OWN_SHARED], self.spans[Access.GLOBAL]
        if question == ASK_EVENT:
            access = Access.GLOBAL if about else Access.OWN_SHARED
            self.event(self.program.kernel.instructions[pc], access)
        elif question == ASK_TENSOR:
            self.machine.memory.tensors[about].record(self, world)
            known.is_recorded(about, world)
        elif question == ASK_READERS:
            known.read_makes(about, events.group_after_read(about, shared, self.seen))
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

    def new_event(self, what: str, instruction: ptx.Instruction) -> int:
        """Number something that others may have to wait for."""
        return self.cluster.events.new(Event(what, instruction.line, self.where))

    def executes(self, what: str, instruction: ptx.Instruction) -> int:
        """Number something that the warp has run, which its later arrivals tell."""
        event = Event(what, instruction.line, self.where)
        number = self.cluster.events.new_executed(event)
        self.seen |= 1 << number
        return number

    def event(self, instruction: ptx.Instruction, access: Access = Access.OWN_SHARED) -> int:
        """Give the event of the warp's accesses of a kind, a new one after each release."""
        number = self.spans[access]
        if not number:
            event = Event(_ACCESSES[access], instruction.line, self.where)
            number = self.spans[access] = self.cluster.events.new_access(event, access)
            self.seen |= 1 << number
            if access is Access.TENSOR and self.machine.tcgen05_fences:
                self.unfenced |= 1 << number
        return number

    def release(self) -> tuple[int, int]:
        """Give (observed, fenced) to pass on to those that wait for what the warp does now."""
        self.spans = [0] * len(Access)
        self.init_span = 0
        return self.seen & ~self.unfenced, self.fenced

    def arrival(self, releases: bool, wide: bool, here: bool) -> Passed:
        """Give what an arrival passes on.

        wide: whether its scope is the cluster or more; here: whether the barrier is in its own CTA.
        Without a release it passes on what fences have released. Between CTAs only a scope that
        holds both counts.
        """
        always = self.seen & self.cluster.events.always & ~self.unfenced
        if releases:
            seen, fenced = self.release()
            cta = (seen, fenced) if here else (0, 0)
            cluster = (seen, fenced) if here or wide else (0, 0)
            return Passed(*cta, *cluster, always)
        released = self.released
        cta = (released.cta, released.cta_fenced) if here else (0, 0)
        cluster = (released.cluster, released.cluster_fenced) if wide else (0, 0)
        if here:
            cluster = cta
        return Passed(*cta, *cluster, always)

    def acquire(self, passed: Passed, acquires: bool = True, wide: bool = False) -> None:
        """Observe what arrivals pass on; a relaxed wait leaves the rest to a later fence."""
        seen, fenced = (passed.cluster, passed.cluster_fenced) if wide else passed[:2]
        if not acquires:
            near = (passed.cta, passed.cta_fenced)
            self.pending |= passed if wide else Passed(*near, *near)
            seen = fenced = 0
        seen |= passed.always
        if self.machine.tcgen05_fences:
            self.unentered |= seen & self.cluster.events.tensor & ~self.seen
        self.seen |= seen
        self.fenced |= fenced

    def fence_release(self, wide: bool, own_shared: bool) -> None:
        """Release to later relaxed arrivals; `own_shared`: accesses to shared::cta alone."""
        seen, fenced = self.release()
        if own_shared:
            of = self.cluster.events.of
            seen &= ~(of[Access.PEER_SHARED] | of[Access.GLOBAL] | of[Access.ATOMIC])
        self.released |= to_all(seen, fenced) if wide else Passed(seen, fenced)

    def fence_acquire(self, wide: bool, shared: bool) -> None:
        """Acquire from earlier relaxed waits; `shared`: accesses to shared memory alone."""
        passed = self.pending
        if shared:
            without = ~self.cluster.events.of[Access.GLOBAL]
            passed = passed._replace(cta=passed.cta & without, cluster=passed.cluster & without)
        self.acquire(passed, wide=wide)

    @property
    def tensor_seen(self) -> int:
        """The events that its accesses to tensor memory are ordered after."""
        return self.seen & ~self.unentered

    def fence_tensor_before(self) -> None:
        """Order its finished accesses to tensor memory before what it does next."""
        self.unfenced &= self.unwaited["ld"] | self.unwaited["st"]
        self.spans[Access.TENSOR] = 0

    def fence_tensor_after(self) -> None:
        """Order its next accesses to tensor memory after what it has observed."""
        self.unentered = 0

    def release_to_gpu(self) -> None:
        """Release the global writes of the warp's CTA to every later acquire on the GPU."""
        self.machine.released |= 1 << self.cta.number

    def acquire_from_gpu(self) -> None:
        """Acquire all releases so far; barriers pass this on, as an event that it has observed."""
        new = self.machine.released & ~self.acquired
        if new:
            self.acquired |= new
            number = self.cluster.events.new(Event("an acquire", 0, self.where))
            self.seen |= 1 << number
            self.cluster.acquires.append((number, new))

    def has_acquired(self, cta: int) -> bool:
        """Say whether this warp, or one that it has waited for, acquired a CTA's release."""
        bits = (bits for number, bits in self.cluster.acquires if self.seen >> number & 1)
        return bool(self.acquired >> cta & 1) or any(b >> cta & 1 for b in bits)

    def wait_for_grids(self, instruction: ptx.Instruction) -> None:
        """Allow global memory to this warp and to warps that wait for it (griddepcontrol.wait)."""
        cluster = self.cluster
        if not self.seen & cluster.grid_waits:
            event = self.new_event("griddepcontrol.wait", instruction)
            self.seen |= 1 << event
            cluster.grid_waits |= 1 << event

    def access_global(self, tensor: Any = None) -> None:
        """Refuse global memory before griddepcontrol.wait, if the kernel has it.

        A tensor that Options.constants names may be accessed earlier.
        """
        if self.machine.waits_for_grids and not self.seen & self.cluster.grid_waits:
            if tensor is not None and tensor.name in self.machine.options.constants:
                return
            raise Hazard(
                Kind.GRID_DEPENDENCY, "global memory is accessed without waiting for"
                " griddepcontrol.wait, which this kernel has"
            )  # fmt: skip
