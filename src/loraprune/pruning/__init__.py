"""The pruning engine: cuts inside a Trainer or without training, the callback, state and resume; PST."""
