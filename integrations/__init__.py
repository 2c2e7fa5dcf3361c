"""Engines that run models on these operators."""
