"""Benchmarks of models: what is measured, of which models, and the result."""
