"""Single weights made zero: scores, masks, SparseGPT, PST, and LoRA that keeps zeros."""
