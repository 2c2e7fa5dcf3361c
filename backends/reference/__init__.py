"""The spec run by torch on any device: the numbers that the other backends are held to."""

from nvfp4.backends.contract import Backend

BACKEND = Backend(
    name="reference",
    ops=("quantize", "quantize_dynamic", "dequantize", "silu_mul_quantize", "mm"),
    needs=lambda problem: [],
    only_by_name=lambda problem: "",
)
