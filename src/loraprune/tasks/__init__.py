"""What a model is tuned for: rows, collator, Trainer, measures and adapter defaults of each kind of model."""
