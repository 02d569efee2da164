"""Measures of a model: perplexity, accuracy, exact matches."""
