"""Device functions that operators and GEMMs share, and the sizes of the tiles they work on."""
