"""Device functions that the operators and the GEMMs share, and the sizes of their tiles."""
