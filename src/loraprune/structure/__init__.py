"""Prunable parts of a model: dimensions, kinds, legal widths, plans."""
