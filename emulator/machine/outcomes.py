"""What an instruction's step returns when the warp does not simply go on.

None means the next instruction, and a number of 0 or more is the instruction to jump to.
"""

YIELD = -1
"""The warp goes on to the next instruction, but lets other warps run first."""
BLOCKED = -2
"""The instruction is not done: it runs again when the warp is woken."""
DIVERGED = -3
"""The warp has set its own pc."""
ENDED = -4
"""The lanes that ran this instruction have exited."""
