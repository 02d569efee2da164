"""Calibration data passed through a model block by block: residual stream, second moments, least squares."""
