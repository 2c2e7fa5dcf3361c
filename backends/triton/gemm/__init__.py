"""The GEMM's parts for every architecture: tiles, loads, decoding, multiplication and split-K."""
