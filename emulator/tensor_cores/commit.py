"""Arrivals at mbarriers when earlier tensor core work has ended (PTX ISA: tcgen05.commit)."""

from collections.abc import Mapping
from functools import partial
from typing import Any

from nvfp4.emulator import ptx
from nvfp4.emulator.hazards import Hazard, Kind
from nvfp4.emulator.isa.builder import Builder, Operation
from nvfp4.emulator.isa.modifiers import Modifiers
from nvfp4.emulator.lanes import pick
from nvfp4.emulator.machine.passed import to_all
from nvfp4.emulator.machine.program import Step
from nvfp4.emulator.machine.shared_addresses import cta_at, mbarrier_at
from nvfp4.emulator.machine.tensor_pipe import issue_event
from nvfp4.emulator.memory.addresses import RANK_SHIFT
from nvfp4.emulator.tensor_cores.cta_groups import group_of, pair_of


def _commit(instruction: ptx.Instruction, builder: Builder, modifiers: Modifiers) -> Step:
    group = group_of(modifiers)
    modifiers.need("mbarrier::arrive::one")
    modifiers.take("shared::cluster")
    multicast = bool(modifiers.take("multicast::cluster"))
    modifiers.need("b64")
    modifiers.done()
    base, offset = builder.address(instruction.operands[0])
    mask = builder.source(instruction.operands[1], 16) if multicast else None

    def step(warp: Any) -> None:
        pair_of(warp, group)
        _, seen = issue_event(warp, instruction, "commit")
        warp.batch = 0
        address = pick(warp.registers[base], warp.mask) + offset
        targets = [address]
        if mask is not None:
            lanes = pick(warp.registers[mask], warp.mask)
            if not lanes or lanes >> len(warp.cluster.ctas):
                raise Hazard(Kind.OUT_OF_BOUNDS, f"CTA mask {lanes:#b} in this cluster")
            low = address & (1 << RANK_SHIFT) - 1
            targets = [r << RANK_SHIFT | low for r in range(16) if lanes >> r & 1]
        warp.machine.counts["commits"] += 1
        barriers = [(mbarrier_at(warp, target), cta_at(warp, target)[0]) for target in targets]
        arrivals = []
        for barrier, cta in barriers:
            observed = seen
            if cta is not warp.cta:
                number = warp.new_event("the arrival of a commit", instruction)
                cta.incoming |= 1 << number
                observed |= 1 << number
            passed = to_all(observed, always=observed & warp.cluster.events.always)
            arrivals.append((cta, partial(barrier.arrive, 1, 0, passed)))

        def send() -> None:
            """Arrive in this CTA at once, and in each other CTA after a delay of its own."""
            for cta, arrive in arrivals:
                if cta is warp.cta:
                    arrive()
                else:
                    warp.machine.after(warp.machine.delay(), arrive)

        warp.cta.pipe.issue(warp, instruction, send)

    return step


OPERATIONS: Mapping[str, Operation] = {"commit": _commit}
