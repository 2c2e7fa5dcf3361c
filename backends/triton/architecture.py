"""What an NVIDIA architecture has that a kernel may use."""


def is_blackwell(sm: int) -> bool:
    """sm_100 and later (sm_103, sm_110, sm_120, ...) convert float32 to E2M1 and multiply NVFP4 in
    hardware.
    """
    return sm >= 100
