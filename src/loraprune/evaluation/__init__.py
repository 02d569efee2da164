"""Measures of a model: perplexity, latency, size."""
