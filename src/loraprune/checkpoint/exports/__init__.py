"""Saved folders in the formats of other runtimes."""
