"""Structured pruning without training: scores from one pass over calibration data, cut and repair in a second."""
