"""The record of a run: plain values, numbers and units, and files that appear at once."""
