"""The pruning engine: cuts during or without training, the Trainer callback, saved state and resume, PST."""
