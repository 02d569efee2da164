"""A plan applied to a model: mask, slice, refit, bias, merge."""
