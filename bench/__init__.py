"""Benchmarks of the ops, beside this machine's ceilings and beside peers, in one run."""
