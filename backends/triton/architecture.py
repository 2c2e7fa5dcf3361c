"""What an NVIDIA architecture has that a kernel may use."""

FP8 = 89
"""From sm_89 on E4M3 is a type of the hardware's, with conversions from and to it."""

HOPPER = 90
"""From sm_90 on a kernel may start before the one whose results it waits for has ended."""

BLACKWELL = 100
"""sm_100 and later (sm_103, sm_110, sm_120, ...) convert float32 to E2M1 and multiply NVFP4."""


def overlaps(sm: int) -> bool:
    return sm >= HOPPER


def is_blackwell(sm: int) -> bool:
    return sm >= BLACKWELL
