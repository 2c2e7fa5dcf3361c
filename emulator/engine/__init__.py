"""The registers of a warp, and the C interpreter of instructions that touch nothing else."""
