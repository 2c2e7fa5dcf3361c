"""The GEMM for every architecture: its tiles, its device functions, operands decoded once."""
