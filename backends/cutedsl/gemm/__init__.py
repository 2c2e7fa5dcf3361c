"""The tcgen05 GEMMs of sm_100, written in CuTe DSL."""
