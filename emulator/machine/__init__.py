"""Warps, CTAs and clusters, and the scheduler that runs them."""
