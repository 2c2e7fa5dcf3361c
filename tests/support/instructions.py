"""The PTX instructions that each kernel must have, and those that it must not have."""

import re
from collections.abc import Iterator

from nvfp4.backends.triton.runtime.architecture import gemm_architecture, multiplies_nvfp4

QUANTIZERS = (
    "_quantize_kernel",
    "_quantize_rows_kernel",
    "_glu_quantize_kernel",
    "_quantize_tokens_kernel",
)
ROUNDING = "_round_rows_kernel"
"""Quantizes and decodes in one pass, so nothing is packed."""

BLOCK_SCALED = ("mxf4nvf4", "block_scale")
APPROXIMATE = ("div.full", "div.approx", "rcp.approx")


def names(ptx: str) -> Iterator[str]:
    """Names of instructions.

    A multiply-add is "fma exact" where its factor is a power of two, or its addend zero: one
    rounding is left.
    """
    constants: dict[str, int | None] = {}
    """The bits of the constants that registers were last set to; None for another value."""
    for line in re.findall(r"^\s*(?:@!?%p\d+ )?([a-z][\w.:]+[^;\n]*)", ptx, re.M):
        name, *operands = re.split(r",?\s+", line)
        halves = {operand.strip("{}") for operand in operands[1:]}
        if name in ("mov.b32", "mov.b64") and len(halves) == 1:
            constants[operands[0]] = _constant(constants, halves.pop())
        elif operands:
            constants.pop(operands[0], None)
        values = [_constant(constants, operand) for operand in operands[2:]]
        exact = name.startswith("fma.rn.f32") and (
            values[1] == 0 or (values[0] is not None and values[0] & 0x7FFFFF == 0)
        )
        yield "fma exact" if exact else name


def _constant(constants: dict[str, int | None], operand: str) -> int | None:
    """The bits of a float32 that an operand is, or of each of two; None if it is not constant."""
    if operand in constants:
        return constants[operand]
    number = re.fullmatch(r"0f([0-9A-F]{8})|(\d+)", operand)
    return number and int(number[1] or number[2], 16 if number[1] else 10) & 0xFFFFFFFF


def check_instructions(kernel: str, ptx: str, sm: int, decodes: bool) -> None:
    """Check a kernel's PTX; `decodes`: whether it multiplies decoded operands, as W4A16 does."""
    found = set(names(ptx))

    def has(*parts: str) -> bool:
        return any(all(part in name for part in parts) for name in found)

    # A float32 becomes E4M3 in one rounding. Triton 3.6 goes through float16 on sm_89.
    assert not has("cvt", "e4m3x2.f16x2")
    if kernel in (*QUANTIZERS, ROUNDING):
        assert has("div.rn.f32")
        assert not any(has(name) for name in APPROXIMATE)
        rounds_as = gemm_architecture(sm) if kernel == ROUNDING else sm
        assert has("cvt.rn.satfinite.e4m3x2.f32") == (rounds_as >= 90)
    if kernel in QUANTIZERS:
        assert has("cvt.rn.satfinite.e2m1x2.f32") == (sm >= 100)
        # No fused multiply-add rounds otherwise than its sum would.
        assert not has("fma.rn")
    if kernel.endswith("mm_kernel"):
        check_multiplication(kernel, found, sm, decodes)


def check_multiplication(kernel: str, found: set[str], sm: int, decodes: bool) -> None:
    """Check that a GEMM uses one kind of tensor-core instruction, the architecture's."""

    def uses(*parts: str) -> bool:
        return any(all(part in name for part in parts) for name in found)

    kinds = {
        "wgmma": uses("wgmma.mma_async", "f32.f16.f16"),
        "mma": uses("mma.sync", "f32.f16.f16.f32"),
        "tcgen05": uses("tcgen05.mma", *BLOCK_SCALED),
        "tcgen05.f16": uses("tcgen05.mma", "kind::f16"),
        "mma.block_scale": uses("mma.sync", *BLOCK_SCALED),
    }
    used = [kind for kind, present in kinds.items() if present]
    assert len(used) == 1, (kernel, used)
    decoded = ("mma", "wgmma") if sm == 90 else ("mma",)
    if multiplies_nvfp4(sm):
        native = ("mma.block_scale",) if sm >= 120 else ("tcgen05",)
        allowed = ("mma", "tcgen05.f16") if decodes else native
    else:
        allowed = decoded
    assert used[0] in allowed, (kernel, used)
    if kernel.startswith("_hopper"):
        assert used == ["wgmma"]
