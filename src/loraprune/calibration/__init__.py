"""Calibration data carried through a model block by block: residual stream, second moments, least squares."""
