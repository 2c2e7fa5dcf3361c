"""What NVFP4 is: the format, its rounding, packing, scale layouts and arithmetic, in plain torch.

Every backend is held to this folder bit for bit. It imports torch and einops alone.
"""
