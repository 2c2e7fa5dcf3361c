"""Weights in quantized forms other than NVFP4: a layer's tensors, and its weight in float64."""

import torch


def _fp8(w, scale, leaf="weight_scale"):
    """Codes of w / scale, with the scale in a shape that the form has."""
    spread = scale
    for dim in (0, 1):
        if scale.dim() == 2 and scale.shape[dim] > 1:
            size = 128 if scale.shape[dim] < w.shape[dim] else 1
            spread = spread.repeat_interleave(size, dim)[: w.shape[0], : w.shape[1]]
    codes = (w / spread).to(torch.float8_e4m3fn)
    return {"weight": codes, leaf: scale}, codes.double() * spread.double()


def per_tensor(w):
    tensors, floats = _fp8(w, w.abs().amax() / 448)
    return tensors | {"input_scale": torch.tensor(0.5)}, floats


def per_row(w):
    return _fp8(w, w.abs().amax(1, keepdim=True) / 448)


def per_block(w):
    blocks = w.new_zeros(-(-w.shape[0] // 128), -(-w.shape[1] // 128))
    blocks += 0.01 * (1 + torch.rand(blocks.shape))
    return _fp8(w, blocks, "weight_scale_inv")


def per_block_with_dimensions_of_1(w):
    tensors, floats = per_block(w)
    scale = tensors.pop("weight_scale_inv")
    return tensors | {"weight_scale": scale[:, None, :, None]}, floats


def mxfp8(w):
    exponents = torch.randint(115, 120, (w.shape[0], w.shape[1] // 32), dtype=torch.uint8)
    spread = torch.exp2(exponents.float() - 127).repeat_interleave(32, 1)
    codes = (w / spread).to(torch.float8_e4m3fn)
    return {"weight": codes, "weight_scale": exponents}, codes.double() * spread.double()


def mxfp4(w):
    exponents = torch.randint(120, 125, (w.shape[0], w.shape[1] // 32), dtype=torch.uint8)
    codes = torch.randint(0, 16, w.shape, dtype=torch.uint8)
    values = torch.tensor([0, 0.5, 1, 1.5, 2, 3, 4, 6]).double()
    floats = torch.where(codes < 8, 1.0, -1.0) * values[(codes & 7).long()]
    floats *= torch.exp2(exponents.double() - 127).repeat_interleave(32, 1)
    data = codes[:, ::2] | codes[:, 1::2] << 4
    return {"weight": data, "weight_scale": exponents}, floats


def int4(w):
    """compressed-tensors' words of eight offset integers, in groups of 32."""
    codes = torch.randint(-8, 8, w.shape)
    scales = torch.rand(w.shape[0], w.shape[1] // 32).bfloat16()
    words = sum((codes[:, i::8] + 8) << 4 * i for i in range(8))
    words = torch.where(words < 1 << 31, words, words - (1 << 32)).int()
    floats = codes * scales.double().repeat_interleave(32, 1)
    shape = torch.tensor(w.shape)
    return {"weight_packed": words, "weight_scale": scales, "weight_shape": shape}, floats


def int4_of_zero_points(w):
    tensors, _ = int4(w)
    zeros = torch.randint(-8, 8, (w.shape[0], w.shape[1] // 32))
    words = sum((zeros[i::8] + 8) << 4 * i for i in range(8))
    words = torch.where(words < 1 << 31, words, words - (1 << 32)).int()
    packed = tensors["weight_packed"]
    codes = torch.stack([packed >> 4 * i & 15 for i in range(8)], -1).flatten(1) - 8
    spread = (each.repeat_interleave(32, 1) for each in (zeros, tensors["weight_scale"].double()))
    zero, scale = spread
    return tensors | {"weight_zero_point": words}, (codes - zero) * scale


def int4_of_two_rows(w):
    """ModelOpt's W4A16_AWQ: a byte has two rows; and factors of the input."""
    codes = torch.randint(-8, 8, w.shape)
    scales, factors = torch.rand(w.shape[0], w.shape[1] // 32), torch.rand(w.shape[1])
    data = ((codes[::2] & 15) | (codes[1::2] & 15) << 4).to(torch.uint8)
    floats = codes * scales.double().repeat_interleave(32, 1) * factors.double()
    return {"weight": data, "weight_scale": scales, "pre_quant_scale": factors}, floats


def int8(w):
    codes = torch.randint(-128, 128, w.shape).to(torch.int8)
    scales = torch.rand(w.shape[0], 1)
    return {"weight": codes, "weight_scale": scales}, codes.double() * scales.double()
