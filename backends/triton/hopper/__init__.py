"""The GEMM on Hopper (sm_90), in Gluon: warps with roles around a pipeline in shared memory."""
