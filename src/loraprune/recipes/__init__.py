"""Whole runs, from loading the model to writing the result."""
