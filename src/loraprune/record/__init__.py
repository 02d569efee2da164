"""The record of a run: plain values, numbers with units, and files that are written atomically."""
