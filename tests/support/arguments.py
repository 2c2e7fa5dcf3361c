"""Every op's schema, and valid arguments for it."""

import torch

import nvfp4

OPS = torch.ops.nvfp4

SCHEMAS = {
    "quantize": 'nvfp4::quantize(Tensor x, Tensor global_scale, str scale_layout="swizzled", str scale_rule="amax_over_six", str backend="") -> (Tensor data, Tensor scales)',
    "quantize_dynamic": 'nvfp4::quantize_dynamic(Tensor x, str scale_layout="swizzled", str scale_rule="amax_over_six", str backend="") -> (Tensor data, Tensor scales, Tensor row_scale)',
    "dequantize": 'nvfp4::dequantize(Tensor data, Tensor scales, Tensor global_scale, ScalarType? out_dtype=None, str scale_layout="swizzled", str backend="") -> Tensor',
    "mm": 'nvfp4::mm(Tensor a, Tensor b, Tensor a_scales, Tensor b_scales, Tensor alpha, Tensor? row_scale=None, Tensor? bias=None, ScalarType? out_dtype=None, str backend="") -> Tensor',
    "glu_quantize": 'nvfp4::glu_quantize(Tensor gate_up, Tensor? global_scale=None, Tensor? offsets=None, float? swiglu_limit=None, str scale_layout="swizzled", str scale_rule="amax_over_six", str activation="silu", str backend="") -> (Tensor data, Tensor scales, Tensor row_scale)',
    "silu_mul_quantize": 'nvfp4::silu_mul_quantize(Tensor gate_up, Tensor global_scale, float? swiglu_limit=None, str scale_layout="swizzled", str backend="") -> (Tensor data, Tensor scales)',
    "rmsnorm_quantize": 'nvfp4::rmsnorm_quantize(Tensor x, Tensor weight, float eps, Tensor? residual=None, Tensor? global_scale=None, str scale_layout="swizzled", str scale_rule="amax_over_six", str backend="") -> (Tensor data, Tensor scales, Tensor row_scale, Tensor residual)',
    "linear": 'nvfp4::linear(Tensor x, Tensor weight, Tensor weight_scales, Tensor weight_global_scale, Tensor? x_global_scale=None, Tensor? bias=None, str scale_rule="amax_over_six", str activation="nvfp4", str backend="") -> Tensor',
    "swiglu_mlp": 'nvfp4::swiglu_mlp(Tensor x, Tensor w13, Tensor w13_scales, Tensor w13_global_scale, Tensor w2, Tensor w2_scales, Tensor w2_global_scale, Tensor? x_global_scale=None, Tensor? h_global_scale=None, Tensor? w13_bias=None, Tensor? w2_bias=None, float? swiglu_limit=None, str scale_rule="amax_over_six", str activation="silu", str backend="") -> Tensor',
    "grouped_mm": 'nvfp4::grouped_mm(Tensor a, Tensor b, Tensor a_scales, Tensor b_scales, Tensor alpha, Tensor offsets, Tensor? row_scale=None, Tensor? bias=None, ScalarType? out_dtype=None, int expected_rows=0, str backend="") -> Tensor',
    "grouped_mm_glu_quantize": 'nvfp4::grouped_mm_glu_quantize(Tensor a, Tensor b, Tensor a_scales, Tensor b_scales, Tensor alpha, Tensor offsets, Tensor? row_scale=None, Tensor? bias=None, Tensor? global_scale=None, float? swiglu_limit=None, ScalarType? gate_up_dtype=None, int expected_rows=0, str scale_rule="amax_over_six", str activation="silu", str backend="") -> (Tensor data, Tensor scales, Tensor row_scale)',
    "moe_dispatch": 'nvfp4::moe_dispatch(Tensor x, Tensor topk_ids, int num_experts, Tensor? x_global_scale=None, int expert_offset=0, str scale_rule="amax_over_six", str backend="") -> (Tensor data, Tensor scales, Tensor row_scale, Tensor offsets, Tensor positions)',
    "moe_combine": 'nvfp4::moe_combine(Tensor y, Tensor topk_weights, Tensor positions, ScalarType? out_dtype=None, str backend="") -> Tensor',
    "moe": 'nvfp4::moe(Tensor x, Tensor topk_weights, Tensor topk_ids, Tensor w13, Tensor w13_scales, Tensor w13_global_scale, Tensor w2, Tensor w2_scales, Tensor w2_global_scale, Tensor? x_global_scale=None, Tensor? h_global_scale=None, Tensor? w13_bias=None, Tensor? w2_bias=None, int expert_offset=0, int global_num_experts=0, float? swiglu_limit=None, str scale_rule="amax_over_six", str activation_format="nvfp4", str activation="silu", str backend="") -> Tensor',
}
NAMES = tuple(SCHEMAS)

K, N, EXPERTS, TOP_K = 96, 40, 5, 2


def arguments(name: str, m: int, device: str, layout: str = "swizzled") -> tuple:
    """Valid arguments of an op for m rows, or tokens."""
    x = torch.randn(m, K, device=device, dtype=torch.bfloat16)
    p = torch.tensor(0.002, device=device)
    if name == "quantize":
        return x, p, layout
    if name == "quantize_dynamic":
        return x, layout
    if name == "silu_mul_quantize":
        return x, p, 7.0, layout
    if name == "glu_quantize":
        return x, None, None, 7.0, layout, "four_over_six", "gelu_tanh"
    if name == "rmsnorm_quantize":
        weight = torch.randn(K, device=device)
        return x, weight, 1e-6, torch.randn_like(x), None, layout
    if name == "dequantize":
        data, scales = OPS.quantize(x, p, layout)
        return data, scales, p, torch.float32, layout
    if name in ("mm", "linear"):
        w = nvfp4.quantize(torch.randn(N, K, device=device))
        bias = torch.randn(N, device=device)
        if name == "linear":
            return x, w.data, w.scales, w.global_scale, None, bias, "four_over_six"
        a = nvfp4.quantize(x, p)
        return a.data, w.data, a.scales, w.scales, p * w.global_scale, None, bias, torch.float32
    return _of_experts(name, x)


def _of_experts(name: str, x: torch.Tensor) -> tuple:
    (m, k), device = x.shape, x.device
    w13 = nvfp4.quantize_experts(torch.randn(EXPERTS, 64, k, device=device), segments=2)
    w2 = nvfp4.quantize_experts(torch.randn(EXPERTS, k, 32, device=device))
    if name == "swiglu_mlp":
        first, second = w13[0], w2[0]
        weights = (first.data, first.scales, first.global_scale)
        weights += (second.data, second.scales, second.global_scale)
        bias = torch.randn(64, device=device)
        return x, *weights, None, torch.tensor(0.01, device=device), bias, None, 7.0
    ids = torch.randint(-1, EXPERTS + 2, (m, TOP_K), device=device, dtype=torch.int32)
    weights = torch.rand(m, TOP_K, device=device)
    if name == "moe_dispatch":
        return x, ids, EXPERTS, None, 1
    if name == "moe":
        both = (w13.data, w13.scales, w13.global_scale, w2.data, w2.scales, w2.global_scale)
        biases = torch.randn(EXPERTS, 64, device=device), torch.randn(EXPERTS, k, device=device)
        h = torch.rand(EXPERTS, device=device) + 0.01
        return x, weights, ids, *both, None, h, *biases, 1, 0, 7.0
    rows, positions = nvfp4.moe_dispatch(x, ids, EXPERTS, expert_offset=1)
    if name == "moe_combine":
        return x.repeat(TOP_K, 1), weights, positions, torch.float32
    alpha = w13.global_scale
    operands = (rows.data, w13.data, rows.scales, w13.scales, alpha, rows.offsets)
    if name == "grouped_mm":
        return *operands, None, torch.randn(EXPERTS, 64, device=device), torch.float32
    return *operands, None, None, None, 7.0, torch.float16, 0, "amax_over_six", "silu"
