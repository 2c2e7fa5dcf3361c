"""The spec run by torch on any device: the numbers that the other backends are held to."""

from nvfp4.backends.backend import Backend

BACKEND = Backend(
    name="reference",
    ops=(
        "quantize",
        "quantize_dynamic",
        "dequantize",
        "glu_quantize",
        "rmsnorm_quantize",
        "mm",
        "weight_only_linear",
        "grouped_mm",
        "weight_only_moe",
        "moe_dispatch",
        "moe_combine",
    ),
    needs=lambda problem: [],
    only_by_name=lambda problem: "",
)
