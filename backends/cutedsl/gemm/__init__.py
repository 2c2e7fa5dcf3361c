"""GEMM kernels for sm_100 in CuTe DSL: dense, grouped, and with SwiGLU in the epilogue."""
