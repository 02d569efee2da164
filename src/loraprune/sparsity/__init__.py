"""Sparsity in single weights: scores, masks, SparseGPT, PST, and LoRA that keeps zeros."""
