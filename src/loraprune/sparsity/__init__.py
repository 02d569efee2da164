"""Unstructured and N:M sparsity: which weights become zero, and what the others become to make up for them."""
