"""A demo on a real model: a small language model with its linear layers in NVFP4, beside bf16."""
