"""The specification of NVFP4 in plain torch: format, rounding, packing, scale layouts, arithmetic.

Every backend's quantizers have to agree with this folder bit for bit. It imports torch and einops
alone.
"""
