"""Tasks of models: the rows, collator, Trainer, measures and adapter defaults for each kind of model."""
