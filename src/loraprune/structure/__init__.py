"""What can be pruned in a model: dimensions, kinds, legal widths, plans."""
