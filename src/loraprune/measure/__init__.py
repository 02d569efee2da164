"""Measurement: evaluation, benchmarks and estimation."""
