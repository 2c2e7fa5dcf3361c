"""What can be called: one file an op, with its Python function and how a call is run.

Importing a file registers its op, torch.ops.nvfp4.<op>.
"""
