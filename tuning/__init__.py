"""Measuring on a machine which tiles are fastest there: what `python -m nvfp4 tune` runs."""
