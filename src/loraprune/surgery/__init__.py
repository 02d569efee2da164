"""Applying a plan to a model: mask, slice, refit, bias, merge."""
