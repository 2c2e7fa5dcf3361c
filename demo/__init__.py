"""The main job on a real model: a small language model's linear layers on NVFP4, measured against
bf16.
"""
