"""Shared, global and tensor memory, and the record of who wrote and read each byte."""
