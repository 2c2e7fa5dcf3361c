"""The accuracy of NVFP4 checkpoints of a language model: each beside the model itself."""
