"""Where the state spaces lie among generic addresses, and the layout of shared addresses.

A global address is the CPU's own. A shared address is the CTA's rank in its cluster times 2^24,
plus an offset, so it also names memory of the CTA's peers. Generic addresses of shared memory and
of parameters lie in windows far above any address that a CPU uses.
"""

SHARED_WINDOW = 1 << 58
PARAMETER_WINDOW = 1 << 59
RANK_SHIFT = 24
"""The position of the CTA's rank in a shared address.

PTX leaves it open. The DSL's kernels rely on it: they clear bit 24 of an mbarrier's address to name
the even CTA of a pair.
"""
OFFSET_MASK = (1 << RANK_SHIFT) - 1
"""The bits of a shared address that are the offset in the CTA's memory."""
DYNAMIC_SHARED_BASE = 1024
"""The system keeps the first 1 KB of shared memory on sm_90 and later (CUDA programming guide)."""
